"""People who were not in training, added to the data set of a trained model."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Collection

import numpy as np

from fssa_jax.config import Data, Rows
from fssa_jax.data.dataset import Dataset, Split, append_texts, log_left_out, number_texts
from fssa_jax.data.reading import read_rows_of
from fssa_jax.data.row_dataset import rows_by_user, rows_split
from fssa_jax.data.rows import choice_texts
from fssa_jax.data.thresholds import check_thresholds, thresholds_of
from fssa_jax.errors import UserError

_log = logging.getLogger(__name__)


def with_people(
    dataset: Dataset, settings: Data, path: str, met_elsewhere: Collection[str] = ()
) -> tuple[Dataset, Split]:
    """The people of a file of rows as one split to score, and the data set with their new texts and features appended.

    People used in training or validation are left out by name: those of the data set, and those in `met_elsewhere`.

    Raises:
      UserError: bad rows, or nobody is left.
    """
    here = dataclasses.replace(settings, path=path) if isinstance(settings, Rows) else Rows(path=path)
    rows, reading = read_rows_of(here, dataset.report.get("levels", ()))
    met = {*dataset.splits["train"].users, *dataset.splits["val"].users, *met_elsewhere}
    again = sorted({row.user for row in rows if row.user in met})
    rows = [dataclasses.replace(row, split_user="test") for row in rows if row.user not in met]
    if not rows:
        raise UserError(f"{path}: all people in it are in the training data; give rows of other people")
    if again:
        names = ", ".join(again[:10]) + (" …" if len(again) > 10 else "")
        _log.warning("%d people of %s were trained on and are left out: %s", len(again), path, names)
    for row in rows:
        check_thresholds(row.texts, thresholds_of(dataset.featuriser), row.place)
    number = number_texts(choice_texts(rows), dataset.texts)
    rng = np.random.default_rng(settings.split_seed)
    groups, left_out = list(dataset.groups), list[str]()
    dropped: Counter[str] = Counter()
    split = rows_split(here, "test", rows_by_user(rows), number, groups, rng, left_out, dropped)
    report = dataset.report | {
        **dataclasses.asdict(reading),
        "left_out_users": left_out,
        "left_out_rows": dict(dropped),
    }
    texts, features = append_texts(dataset, number)
    cut = {number[row.prompt, response] for row in rows for response in row.unfinished}
    # The true rewards of other people are unknown, even on a built-in benchmark.
    wider = dataclasses.replace(
        dataset,
        texts=texts,
        features=features,
        groups=groups,
        truth=None,
        report=report,
        unfinished=dataset.unfinished | {i for i in cut if i >= len(dataset.texts)},
        trained_texts=dataset.known_texts,
    )
    log_left_out(wider)
    return wider, split
