"""Folds of people: everybody once, with all of their rows."""

import numpy as np
import pytest

from fssa_jax.data.dataset import Split, make_table
from fssa_jax.data.folds import fold_of_people, pooled, some_people
from tests.mistakes import complaint


def split(names: list[str], rows: int, width: int) -> Split:
    ids = [
        [np.arange(rows * width).reshape(rows, width) + 100 * i, np.zeros((1, width), int)] for i in range(len(names))
    ]
    return Split(names, make_table(ids, list(range(len(names)))))


def test_pooled_people_keep_their_rows_whatever_the_sizes():
    both = pooled([split(["ann", "bob"], 2, 2), split(["cem"], 5, 4)])
    assert both.users == ["ann", "bob", "cem"]
    table = both.table
    assert np.asarray(table.chosen).shape == (3, 2, 5)
    assert np.asarray(table.others).shape == (3, 2, 5, 2)
    assert np.asarray(table.count).tolist() == [[2, 1], [2, 1], [5, 1]]
    assert np.asarray(table.chosen)[1, 0, :2].tolist() == [100, 102]
    assert (np.asarray(table.others)[:2] == -1).all()  # choices between two
    assert np.asarray(table.others)[2, 0, 4].tolist() == [18, 19]
    one = some_people(both, np.array([2]))
    assert one.users == ["cem"]
    assert np.asarray(one.table.rejected)[0, 0].tolist() == np.asarray(table.rejected)[2, 0].tolist()


def test_folds_do_not_depend_on_the_order_and_differ_by_one_person_at_most():
    names = [f"u{i}" for i in range(11)]
    fold = dict(zip(names, fold_of_people(names, 3), strict=True))
    again = dict(zip(names[::-1], fold_of_people(names[::-1], 3), strict=True))
    assert fold == again
    assert sorted(np.bincount(list(fold.values())).tolist()) == [3, 4, 4]
    assert fold != dict(zip(names, fold_of_people(names, 3, seed=1), strict=True))


@pytest.mark.parametrize("number", [0, 1, 12])
def test_folds_that_cannot_be_made_are_refused(number):
    assert f"--folds={number}" in complaint(fold_of_people, [f"u{i}" for i in range(11)], number)
