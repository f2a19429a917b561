"""Cross-validation over people: each person is held out once."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from fssa_jax.data.dataset import Dataset, Split, arrays_of
from fssa_jax.errors import UserError
from fssa_jax.types import ChoiceTable

_PADDING = {"others": -1, "weight": 1}  # of rows or lists that a table lacks; 0 for all else


def pooled(splits: Sequence[Split]) -> Split:
    """The people of several splits as one, in this order."""
    tables = [arrays_of(split.table) for split in splits]
    joined = {name: _joined(name, tables) for name in dict.fromkeys(name for table in tables for name in table)}
    return Split([user for split in splits for user in split.users], ChoiceTable(**joined))


def _joined(name: str, tables: list[dict[str, np.ndarray]]) -> np.ndarray:
    """An array of all tables, padded to the same number of rows, and for lists of responses."""
    padding = _PADDING.get(name, 0)
    some = next(table[name] for table in tables if name in table)
    people = [len(table["count"]) for table in tables]
    shape = np.max([table[name].shape[1:] for table in tables if name in table], axis=0, initial=0).astype(int)
    if some.ndim > 2:  # (people, pools, rows, …): a table without this array may have more rows
        shape[1] = max(table["chosen"].shape[2] for table in tables)
    out = np.full((sum(people), *shape), padding, some.dtype)
    for start, table in zip(np.cumsum([0, *people[:-1]]), tables, strict=True):
        if name in table:
            array = table[name]
            out[(slice(start, start + len(array)), *(slice(size) for size in array.shape[1:]))] = array
    return out


def some_people(split: Split, rows: np.ndarray) -> Split:
    """The people in these rows of a split."""
    table = ChoiceTable(**{name: array[rows] for name, array in arrays_of(split.table).items()})
    return Split([split.users[int(row)] for row in rows], table)


def fold_of_people(users: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """(people,) the fold of each person, by a hash that does not depend on their order; sizes differ by at most 1.

    Raises:
      UserError: fewer than two folds, or fewer people than folds.

    >>> from fssa_jax.data.folds import fold_of_people
    >>> sorted(fold_of_people(["ann", "bob", "cem", "dai", "eva"], 2).tolist())
    [0, 0, 0, 1, 1]
    """
    if folds < 2:
        raise UserError(f"--folds={folds}: needs 2 or more")
    if len(users) < folds:
        raise UserError(f"--folds={folds}: there are only {len(users)} people; give at most as many folds as people")
    order = np.argsort([hashlib.sha256(f"{seed}/fold:{user}".encode()).hexdigest() for user in users], kind="stable")
    out = np.zeros(len(users), int)
    out[order] = np.arange(len(users)) % folds
    return out


def without_fold(dataset: Dataset, people: Split, fold: np.ndarray, number: int) -> Dataset:
    """The data set with the people outside of a fold for training, and those in it for validation and test."""
    held_out = some_people(people, np.flatnonzero(fold == number))
    training = some_people(people, np.flatnonzero(fold != number))
    return dataclasses.replace(dataset, splits={"train": training, "val": held_out, "test": held_out})
