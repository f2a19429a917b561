"""Texts as rows of tokens: what is too long is counted, cut or left out; two tables are joined."""

import pytest

from fssa_jax.lm.token_table import encode_table
from fssa_jax.lm.tokenizer import ChatTokenizer
from tests import small_lm

PROMPT, RESPONSE = "how do I bake bread?", "hey, just mix it"


@pytest.mark.parametrize("truncate", ["drop", "left", "right"])
def test_rows_that_are_too_long_are_counted_and_listed(tmp_path, caplog, truncate):
    fast = ChatTokenizer(small_lm.tokenizer(tmp_path))
    texts = [(PROMPT, RESPONSE), (PROMPT * 4, RESPONSE), (PROMPT, RESPONSE * 4)]
    whole = [fast.encode(*t) for t in texts]
    limit = len(whole[0].tokens) + 3
    table = encode_table(fast, texts, max_length=limit, truncate=truncate)
    assert table.too_long == [1, 2]
    said = {"drop": "2 left out", "left": "1 left out, 1 cut at the beginning", "right": "1 left out, 1 cut at the end"}
    assert f"2 texts of more than {limit} tokens: {said[truncate]}" in caplog.text
    assert table.tokens[0, : table.lengths[0]].tolist() == whole[0].tokens
    assert table.tokens.shape[1] <= limit
    if truncate == "drop":
        assert table.lengths.tolist() == [len(whole[0].tokens), 0, 0]
    if truncate == "left":
        assert table.tokens[1, table.starts[1] : table.ends[1]].tolist() == whole[1].tokens[whole[1].start :]
        assert table.lengths[1] == limit
    if truncate == "right":
        assert table.lengths[2] == limit
        assert table.tokens[2].tolist()[:limit] == whole[2].tokens[:limit]
        assert table.lengths[1] == 0  # nothing of its response would be left
