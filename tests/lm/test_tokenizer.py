"""Tokens: the response's boundaries come from the template itself, whatever it looks like."""

import pytest

from fssa_jax.lm import tokenizer as tokens
from fssa_jax.lm.tokenizer import check_vocabulary, encode, frame, load_tokenizer, prompt_tokens, stop_tokens
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


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    fast = small_lm.tokenizer(tmp_path)
    check_vocabulary(fast, 97, tmp_path)
    assert complaint(check_vocabulary, fast, 50, tmp_path).startswith(f"{tmp_path}: the tokenizer has ids up to")


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    assert complaint(load_tokenizer, tmp_path).startswith(f"{tmp_path}: no tokenizer that can be read")
    small_lm.tokenizer(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").chat_template == small_lm.TEMPLATE


def test_a_template_that_raises_is_one_line(tmp_path):
    fast = small_lm.tokenizer(tmp_path / "t", "{{ raise_exception('no user turns') }}")
    assert "the chat template cannot be used (no user turns)" in complaint(frame, fast, "hey")
