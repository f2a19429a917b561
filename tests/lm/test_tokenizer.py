"""Tokens: the response's boundaries come from the template itself, whatever it looks like."""

import numpy as np
import pytest

from fssa_jax.lm import text_encoder as embed
from fssa_jax.lm import tokenizer as tokens
from fssa_jax.lm.tokenizer import (
    check_vocabulary,
    encode,
    encode_table,
    frame,
    load_tokenizer,
    prompt_tokens,
    stop_tokens,
)
from fssa_jax.ops.padding import batch_rows, bucket, filled_rows, length_batches, padding_share
from tests import small_lm
from tests.mistakes import complaint

INST = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"  # noqa: E501
TEMPLATES = {
    "chatml": small_lm.TEMPLATE,
    "inst": INST,
    "inst with a space": INST.replace("{{ m.content }}{{ eos", "{{ m.content }} {{ eos"),
    "none": None,
}
PROMPT, RESPONSE = "how do I bake bread?", "hey, just mix it"


@pytest.fixture(params=TEMPLATES)
def tokenizer(request, tmp_path):
    return small_lm.tokenizer(tmp_path, TEMPLATES[request.param])


def test_the_response_is_found_from_its_first_token_to_the_end_of_the_turn(tokenizer):
    row = encode(tokenizer, PROMPT, RESPONSE)
    said = tokenizer.decode(row.tokens[row.start : row.end])
    ends = {"<|end|>", "</s>"}
    assert said.strip().startswith(RESPONSE)
    assert said.strip().removeprefix(RESPONSE).strip() in ends
    assert row.end == len(row.tokens)
    before = tokenizer.decode(row.tokens[: row.start])
    assert PROMPT in before
    assert "hey" not in before
    without = encode(tokenizer, PROMPT, RESPONSE, end_of_turn=False)
    assert tokenizer.decode(without.tokens[without.start :]).strip() == RESPONSE
    assert without.tokens == row.tokens[: without.end]


def test_generation_starts_where_scoring_does(tokenizer):
    row = encode(tokenizer, PROMPT, RESPONSE)
    start = prompt_tokens(tokenizer, PROMPT)
    assert row.tokens[: len(start)] == start or row.start == len(start) - 1
    assert row.tokens[-1] in stop_tokens(tokenizer)


def test_the_frame_is_what_the_template_renders(tmp_path):
    fast = small_lm.tokenizer(tmp_path)
    before, after = frame(fast, PROMPT)
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    assert before + RESPONSE + after == fast.apply_chat_template(said, tokenize=False)
    assert before == fast.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)


def test_without_a_template_there_is_a_fallback_that_is_said_once(tmp_path, caplog):
    tokens._say_fallback.cache_clear()
    fast = small_lm.tokenizer(tmp_path, None)
    assert frame(fast, PROMPT) == (f"<s>{PROMPT}\n\n", "</s>")
    frame(fast, PROMPT)
    assert sum("no chat template" in m for m in caplog.messages) == 1


def test_an_empty_response_is_named(tokenizer):
    assert complaint(encode, tokenizer, PROMPT, " \n").startswith("empty response to 'how do I bake")


@pytest.mark.parametrize("truncate", ["drop", "left", "right"])
def test_rows_that_are_too_long_are_counted_and_listed(tmp_path, caplog, truncate):
    fast = small_lm.tokenizer(tmp_path)
    texts = [(PROMPT, RESPONSE), (PROMPT * 4, RESPONSE), (PROMPT, RESPONSE * 4)]
    whole = [encode(fast, *t) for t in texts]
    limit = len(whole[0].tokens) + 3
    table = encode_table(fast, texts, max_length=limit, truncate=truncate)
    assert table.too_long == [1, 2]
    assert f"2 texts of more than {limit} tokens" in caplog.text
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


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    fast = small_lm.tokenizer(tmp_path)
    check_vocabulary(fast, 97, tmp_path)
    assert complaint(check_vocabulary, fast, 50, tmp_path).startswith(f"{tmp_path}: the tokenizer has ids up to")


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    assert complaint(load_tokenizer, tmp_path).startswith(f"{tmp_path}: no tokenizer that can be read")
    small_lm.tokenizer(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").chat_template == small_lm.TEMPLATE


def test_buckets_are_few_and_hold_every_length():
    sizes = [bucket(n) for n in range(1, 3000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 30
    assert max(size / n for n, size in enumerate(sizes, 1) if n >= 64) < 1.3


def test_padding_of_real_lengths_is_under_15_per_cent():
    """Lengths of chat responses are about log-normal; here the median is 180 tokens."""
    lengths = np.exp(np.random.default_rng(0).normal(5.2, 0.8, 5000)).astype(int) + 1
    assert padding_share(lengths.tolist()) < 0.15


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_have_little_padding_filling_included(devices):
    """As embedding cuts them, on an accelerator: lengths of statements and of arguments, in tokens."""
    budget = 16_384 * devices
    number = max(32 * budget // embed._TYPICAL // embed._SHARD, 1) * embed._SHARD
    for median, spread in ((29, 0.4), (90, 0.45)):
        drawn = np.random.default_rng(0).normal(np.log(median), spread, number)
        lengths = np.clip(np.exp(drawn), 4, 256).astype(int)
        total = sum(
            size * filled_rows(len(rows), batch_rows(size, budget, devices), devices)
            for size, rows in length_batches(lengths.tolist(), budget, devices, 256)
        )
        assert 1 - lengths.sum() / total < 0.15


def test_a_template_that_raises_is_one_line(tmp_path):
    fast = small_lm.tokenizer(tmp_path / "t", "{{ raise_exception('no user turns') }}")
    assert "the chat template cannot be used (no user turns)" in complaint(frame, fast, "hey")


def test_batches_hold_every_row_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    batches = length_batches(lengths, tokens=1024, multiple=2)
    assert sorted(np.concatenate([rows for _, rows in batches]).tolist()) == list(range(200))
    for size, rows in batches:
        assert all(lengths[r] <= size for r in rows)
        assert len(rows) * size <= max(1024, 2 * size)
    sizes = [size for size, _ in batches]
    assert sizes == sorted(sizes, reverse=True)
