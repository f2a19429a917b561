"""Texts as rows of tokens, padded to one length; longer texts are cut or left out."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fssa_jax.lm.tokenizer import Encoded, encode, special_ids
from fssa_jax.ops.padding import bucket

_log = logging.getLogger(__name__)

Truncate = Literal["drop", "left", "right"]


@dataclasses.dataclass
class TokenTable:
    """Texts as rows of tokens, padded on the right: `tokens` (texts, length), `starts`, `ends`, `lengths` (texts,).

    Rows that were dropped because they did not fit have length 0; their indices are in `too_long`.
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
    tokenizer: Any,
    texts: Sequence[tuple[str, str]],
    *,
    max_length: int,
    truncate: Truncate = "drop",
    end_of_turn: bool = True,
) -> TokenTable:
    """Tokenises all texts (prompt, response) into one table.

    Args:
      max_length: maximum tokens per row.
      truncate: for longer rows: "drop" leaves them out and lists them; "left" cuts the beginning of the prompt; "right"
        cuts the end of the response.

    A row that would lose its whole response, or everything before it, is left out too.

    Raises:
      UserError: a response is empty.
    """
    rows: list[Encoded | None] = []
    too_long = []
    special = special_ids(tokenizer)
    for number, (prompt, response) in enumerate(texts):
        row: Encoded | None = encode(tokenizer, prompt, response, end_of_turn=end_of_turn, special=special)
        assert row is not None
        over = len(row.tokens) - max_length
        if over > 0:
            too_long.append(number)
            row = _shorten(row, over, truncate)
        rows.append(row)
    lengths = np.array([len(row.tokens) if row else 0 for row in rows], np.int32)
    tokens = np.zeros((len(rows), min(bucket(max(int(lengths.max(initial=1)), 1)), max_length)), np.int32)
    for i, row in enumerate(rows):
        if row:
            tokens[i, : len(row.tokens)] = row.tokens
    starts = np.array([row.start if row else 0 for row in rows], np.int32)
    ends = np.array([row.end if row else 0 for row in rows], np.int32)
    if too_long:
        what = {"drop": "left out", "left": "cut at the beginning", "right": "cut at the end"}[truncate]
        _log.warning("%d texts of more than %d tokens are %s", len(too_long), max_length, what)
    return TokenTable(tokens, starts, ends, lengths, too_long)


def join_tables(first: TokenTable, second: TokenTable) -> TokenTable:
    """Concatenates the rows of two tables."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    tokens = [np.pad(t.tokens, ((0, 0), (0, width - t.tokens.shape[1]))) for t in (first, second)]
    starts, ends, lengths = (
        np.concatenate([getattr(t, name) for t in (first, second)]) for name in ("starts", "ends", "lengths")
    )
    too_long = [*first.too_long, *(len(first.lengths) + i for i in second.too_long)]
    return TokenTable(np.concatenate(tokens), starts, ends, lengths, too_long)


def _shorten(row: Encoded, over: int, truncate: Truncate) -> Encoded | None:
    if truncate == "drop":
        return None
    if truncate == "left":
        if over > row.start - 1:  # one token must remain before the response
            return None
        return Encoded(row.tokens[over:], row.start - over, row.end - over)
    end = row.end - over
    return Encoded(row.tokens[:end], row.start, end) if end > row.start else None
