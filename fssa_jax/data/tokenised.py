"""Tokenises the texts of a data set, and drops choices about texts that are too long."""

import logging
from collections.abc import Collection, Sequence

import jax
import numpy as np

from fssa_jax.data.dataset import Dataset, all_of
from fssa_jax.data.features import Text
from fssa_jax.data.thresholds import is_threshold
from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base
from fssa_jax.lm.token_table import TokenTable, Truncate, encode_table
from fssa_jax.types import ChoiceTable

_log = logging.getLogger(__name__)


def tokenise(
    base: Base, texts: Sequence[Text], max_length: int, truncate: Truncate, unfinished: Collection[int] = ()
) -> TokenTable:
    """Tokenises all texts; texts that are too long are left out or cut. Thresholds have no tokens.

    Texts with a number in `unfinished` have no end-of-turn token.

    Raises:
      UserError: max_length exceeds the positions of the model.
    """
    limit = base.decoder.config.max_length
    if max_length > limit:
        raise UserError(f"config.policy.max_length: {max_length} is more than the {limit} positions of the model")
    before = base.tokenizer.spelled
    some = without_thresholds(texts)
    table = encode_table(base.tokenizer, some, max_length=max_length, truncate=truncate, unfinished=unfinished)
    if number := base.tokenizer.spelled - before:
        _log.warning("%d prompts or responses contain the string of a special token, which is encoded as text", number)
    return table


def without_thresholds(texts: Sequence[Text]) -> list[Text | None]:
    """The texts, with None for thresholds."""
    return [None if is_threshold(text) else text for text in texts]


def only_with_tokens(dataset: Dataset, tokens: TokenTable) -> None:
    """Drops the choices about texts without tokens, in place, and counts them in the data set's report."""
    thresholds = dataset.thresholds
    if ((tokens.lengths > 0) | thresholds).all():
        return
    total = 0
    for split in dataset.splits.values():
        split.table, lost = table_with_tokens(split.table, tokens, thresholds)
        total += lost
    note_too_long(dataset, total)


def note_too_long(dataset: Dataset, number: int) -> None:
    """Logs the number of choices dropped because their texts have no tokens, and adds it to the data set's report."""
    dataset.report.setdefault("left_out_rows", {})["of texts that are too long"] = number
    if number:
        _log.warning("%d choices about texts that are too long are left out", number)


def only_pairs_to_predict(dataset: Dataset, names: Sequence[str]) -> None:
    """Drops thumbs and ratings from the target pools of splits, in place, and counts them in the data set's report.

    A policy writes texts. It can read thumbs and ratings in a context, but prefers no text to a threshold.
    """
    thresholds = dataset.thresholds
    if not thresholds.any():
        return
    number = 0
    for name in names:
        dataset.splits[name].table, lost = pairs_to_predict(dataset.splits[name].table, thresholds)
        number += lost
    note_only_read(dataset, number)


def note_only_read(dataset: Dataset, number: int) -> None:
    """Logs the number of thumbs and ratings that are no targets of a policy, and adds it to the data set's report."""
    what = "of thumbs and ratings among the targets, which a policy only reads"
    dataset.report.setdefault("left_out_rows", {})[what] = number
    if number:
        _log.warning("%d choices %s, are left out", number, what)


def pairs_to_predict(table: ChoiceTable, thresholds: np.ndarray) -> tuple[ChoiceTable, int]:
    """The table without thumbs and ratings in the target pool, and their number.

    Raises:
      UserError: nobody has another target.
    """
    table = jax.tree.map(np.array, table)
    good = np.asarray(table.mask) & ~(thresholds[table.chosen] | thresholds[table.rejected])
    good[:, 0] = np.asarray(table.mask)[:, 0]
    kept = _only(table, good)
    if not kept.count[:, 1].any():
        raise UserError("the rows have only thumbs and ratings to predict; a policy is trained on pairs, give some")
    return kept, int(table.count.sum() - kept.count.sum())


def table_with_tokens(
    table: ChoiceTable, tokens: TokenTable, thresholds: np.ndarray | None = None
) -> tuple[ChoiceTable, int]:
    """The choices about texts with tokens, and the number of the other choices; `thresholds` (texts,) need none.

    Raises:
      UserError: no user has both a context and a target choice left.
    """
    table = jax.tree.map(np.array, table)
    there = tokens.lengths > 0 if thresholds is None else (tokens.lengths > 0) | thresholds
    kept = _only(table, np.asarray(table.mask) & all_of(table, there))
    if not (kept.count > 0).all(1).any():
        raise UserError(
            "config.policy.max_length: no choice is short enough; raise it, or give config.policy.truncate=left"
        )
    return kept, int(table.count.sum() - kept.count.sum())


def _only(table: ChoiceTable, good: np.ndarray) -> ChoiceTable:
    """The choices that are good (users, 2, rows), in their order."""
    order = np.argsort(~good, axis=2, kind="stable")
    chosen, rejected = (np.take_along_axis(side, order, axis=2) for side in (table.chosen, table.rejected))
    others = None if table.others is None else np.take_along_axis(table.others, order[..., None], axis=2)
    weight = None if table.weight is None else np.take_along_axis(table.weight, order, axis=2)
    count = good.sum(2).astype(np.int32)
    return ChoiceTable(chosen, rejected, count, table.group, others, weight)
