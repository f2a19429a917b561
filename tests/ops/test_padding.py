"""Plans of padding: every row fits, little is padding, few programs are compiled, and nothing depends on the past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fssa_jax.ops.padding import best_plan, bucket, cheapest, few_plans, fits, padded_tokens

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40).map(lambda x: sorted(x, reverse=True))


@given(lengths, st.integers(1, 4))
def test_every_row_fits_and_more_groups_never_cost_more(rows, groups):
    plan = best_plan(rows, groups)
    assert sum(number for number, _ in plan) == len(rows)
    assert all(number > 0 for number, _ in plan)
    assert 1 <= len(plan) <= groups
    padded = np.repeat([length for _, length in plan], [number for number, _ in plan])
    assert (padded >= rows).all()
    assert (np.diff(padded) <= 0).all()
    assert fits(plan, rows)
    assert padded_tokens(plan) == padded.sum() <= padded_tokens(best_plan(rows, max(groups - 1, 1)))
    assert padded_tokens(plan) <= len(rows) * bucket(rows[0])


@given(lengths, lengths)
def test_a_plan_takes_exactly_the_rows_that_are_no_longer_than_it(ours, theirs):
    plan = best_plan(ours, 3)
    theirs = sorted(np.resize(theirs, len(ours)).tolist(), reverse=True)
    padded = np.repeat([length for _, length in plan], [number for number, _ in plan])
    assert fits(plan, theirs) == (padded >= theirs).all()


@given(st.lists(st.integers(1, 100), min_size=8, max_size=8), st.integers(0, 2**31))
def test_any_batch_finds_a_plan_in_a_short_menu(batch, seed):
    typical = -np.sort(-np.random.default_rng(seed).integers(1, 101, (20, 8)), axis=1)
    menu = few_plans(typical, groups=2, limit=100, most=3)
    assert 1 <= len(menu) <= 4
    batch = sorted(batch, reverse=True)
    plan = cheapest(menu, batch)
    assert fits(plan, batch)
    assert padded_tokens(plan) == min(padded_tokens(p) for p in menu if fits(p, batch))


def test_two_kinds_of_batches_get_a_plan_each():
    long, short = [96, 96, 96, 96, 40, 40, 40, 40], [40] * 8
    menu = few_plans(np.array([long, short] * 5), groups=2, limit=100)
    assert cheapest(menu, long) == ((4, 96), (4, 40))
    assert cheapest(menu, short) == ((8, 40),)
    assert cheapest(menu, [100] * 8) == ((8, 100),)  # nothing like it was among the typical ones


@pytest.mark.parametrize("number", [1, 2, 3, 7, 9])
def test_few_rows_are_cut_between_rows(number):
    assert sum(rows for rows, _ in best_plan(range(number, 0, -1), 4)) == number
