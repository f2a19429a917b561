"""Texts as rows of tokens, padded to one length; longer texts are cut or left out."""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from fssa_jax.lm.tokenizer import ChatTokenizer, Encoded
from fssa_jax.ops.padding import bucket

_log = logging.getLogger(__name__)

Truncate = Literal["drop", "left", "right"]


@dataclasses.dataclass
class TokenTable:
    """Texts as rows of tokens, padded on the right: `tokens` (texts, length), `starts`, `ends`, `lengths` (texts,).

    Rows that were left out because they did not fit have length 0; they and rows that were cut are in `too_long`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray
    too_long: list[int]

    def rows(self, ids: np.ndarray) -> "TokenTable":
        """The table of a subset of the texts."""
        number = {int(i): place for place, i in enumerate(ids)}
        parts = (getattr(self, name)[ids] for name in ("tokens", "starts", "ends", "lengths"))
        return TokenTable(*parts, too_long=[number[i] for i in self.too_long if i in number])


def encode_table(
    tokenizer: ChatTokenizer,
    texts: Sequence[tuple[str, str] | None],
    *,
    max_length: int,
    truncate: Truncate = "drop",
    unfinished: Collection[int] = (),
) -> TokenTable:
    """Tokenises all texts (prompt, response) into one table.

    Args:
      texts: the texts; None for a row that has no tokens and is not counted as left out.
      max_length: maximum tokens per row.
      truncate: for longer rows: "drop" leaves them out and lists them; "left" cuts the beginning of what the user
        wrote; "right" cuts the end of the response.
      unfinished: numbers of the texts whose response was cut off: they have no end-of-turn token, which would teach a
        model to stop there.

    A row that would lose its whole response, or more than what the user wrote, is left out too.

    Raises:
      UserError: a response is empty.
    """
    rows: list[Encoded | None] = []
    too_long = []
    cut = {"drop": lambda row, limit: None, "left": Encoded.cut_left, "right": Encoded.cut_right}[truncate]
    for number, text in enumerate(texts):
        if text is None:
            rows.append(None)
            continue
        prompt, response = text
        row: Encoded | None = tokenizer.encode(prompt, response, end_of_turn=number not in unfinished)
        assert row is not None
        if len(row.tokens) > max_length:
            too_long.append(number)
            row = cut(row, max_length)
        rows.append(row)
    lengths = np.array([len(row.tokens) if row else 0 for row in rows], np.int32)
    tokens = np.zeros((len(rows), min(bucket(max(int(lengths.max(initial=1)), 1)), max_length)), np.int32)
    for i, row in enumerate(rows):
        if row:
            tokens[i, : len(row.tokens)] = row.tokens
    starts = np.array([row.start if row else 0 for row in rows], np.int32)
    ends = np.array([row.end if row else 0 for row in rows], np.int32)
    if too_long:
        dropped = sum(rows[number] is None for number in too_long)
        where = {"drop": "", "left": "at the beginning of the prompt", "right": "at the end of the response"}[truncate]
        said = [f"{dropped} left out"] if dropped else []
        said += [f"{len(too_long) - dropped} cut {where}"] if dropped < len(too_long) else []
        _log.warning("%d texts of more than %d tokens: %s", len(too_long), max_length, ", ".join(said))
    return TokenTable(tokens, starts, ends, lengths, too_long)


def no_texts() -> TokenTable:
    """A table without rows."""
    nothing = np.zeros(0, np.int32)
    return TokenTable(np.zeros((0, bucket(1)), np.int32), nothing, nothing, nothing, [])


def join_tables(first: TokenTable, second: TokenTable) -> TokenTable:
    """Concatenates the rows of two tables."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    tokens = [np.pad(t.tokens, ((0, 0), (0, width - t.tokens.shape[1]))) for t in (first, second)]
    starts, ends, lengths = (
        np.concatenate([getattr(t, name) for t in (first, second)]) for name in ("starts", "ends", "lengths")
    )
    too_long = [*first.too_long, *(len(first.lengths) + i for i in second.too_long)]
    return TokenTable(np.concatenate(tokens), starts, ends, lengths, too_long)
