"""Tokens: the response's boundaries come from the template itself, whatever it looks like."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fssa_jax.lm.messages import join_messages, messages_of, readable
from fssa_jax.lm.tokenizer import ChatTokenizer, check_vocabulary, load_tokenizer
from tests import small_lm
from tests.mistakes import complaint

INST = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"  # noqa: E501
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501
TEMPLATES = {
    "chatml": small_lm.TEMPLATE,
    "inst": INST,
    "inst with a space": INST.replace("{{ m.content }}{{ eos", "{{ m.content }} {{ eos"),
    "no end token": PLAIN,
    "line breaks": PLAIN.replace("{{ m.role }}: ", "{{ m.role }}\n\n"),
    "none": None,
}
PROMPT, RESPONSE = "how do I bake bread?", "hey, just mix it"


def byte_level(directory, template):
    return small_lm.tokenizer(directory, template)


def sentence_pieces(directory, template, scheme="always"):
    """A tokenizer that puts a space in front of a text, and one for each space: SentencePiece's."""
    raw = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
    text = ["how do I bake bread? hey, just mix it. user: assistant:", "[INST] [/INST]", "a\nb\n\nc"] * 3
    raw.train_from_iterator(text, trainers.BpeTrainer(vocab_size=120, special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


def gpt2_like(directory, template):
    """Byte-level with GPT-2's own splitting: line breaks and the last space before a word go together."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    text = ["how do I bake bread?\n\nhey, just mix it.\n\n user: assistant: hey"] * 5
    special = ["<s>", "</s>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


KINDS = {
    "byte level": byte_level,
    "gpt-2": gpt2_like,
    "sentence pieces": sentence_pieces,
    "sentence pieces, first": lambda d, t: sentence_pieces(d, t, "first"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(params=TEMPLATES)
def tokenizer(request, kind, tmp_path):
    return ChatTokenizer(kind(tmp_path, TEMPLATES[request.param]))


@pytest.fixture
def fast(tmp_path):
    return ChatTokenizer(gpt2_like(tmp_path, small_lm.TEMPLATE))


def test_the_response_is_found_from_its_first_token_to_the_end_of_the_turn(tokenizer):
    row = tokenizer.encode(PROMPT, RESPONSE)
    said = tokenizer.raw.decode(row.tokens[row.start : row.end])
    assert said.strip().startswith(RESPONSE)
    assert said.strip().removeprefix(RESPONSE).strip() in {"<|end|>", "</s>"}
    assert row.end == len(row.tokens)
    before = tokenizer.raw.decode(row.tokens[: row.start])
    assert PROMPT in before
    assert "hey" not in before
    without = tokenizer.encode(PROMPT, RESPONSE, end_of_turn=False)
    assert tokenizer.raw.decode(without.tokens[without.start :]).strip() == RESPONSE
    assert without.tokens == row.tokens[: without.end]


@pytest.mark.parametrize("response", [RESPONSE, "I bake", " hey", "\nhey", "?"])
def test_generation_starts_from_the_tokens_before_every_response(tokenizer, response):
    row = tokenizer.encode(PROMPT, response)
    assert row.tokens[: row.start] == tokenizer.prompt(PROMPT).tokens
    assert row.tokens[-1] in tokenizer.stop_tokens


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_response_reads_as_in_the_whole_text(template, kind, tmp_path):
    """No space is put in between where the response is tokenised after another text."""
    tokenizer = ChatTokenizer(kind(tmp_path, TEMPLATES[template]))
    before, _ = tokenizer.frame(PROMPT)
    row = tokenizer.encode(PROMPT, RESPONSE, end_of_turn=False)
    whole = tokenizer.raw(before + RESPONSE, add_special_tokens=False)["input_ids"]
    assert tokenizer.raw.decode(row.tokens) == tokenizer.raw.decode(whole)


def test_what_the_user_wrote_is_found(tokenizer):
    row = tokenizer.prompt(PROMPT)
    assert tokenizer.raw.decode(row.tokens[row.head : row.tail]).strip().removeprefix("user: ") == PROMPT


def test_cut_on_the_left_keeps_the_headers(fast):
    row = fast.encode(PROMPT, RESPONSE)
    short = row.cut_left(len(row.tokens) - 4)
    assert len(short.tokens) == len(row.tokens) - 4
    assert short.tokens[: row.head] == row.tokens[: row.head]
    assert short.tokens[short.head :] == row.tokens[row.head + 4 :]
    assert short.tokens[short.start : short.end] == row.tokens[row.start :]
    assert row.cut_left(len(row.tokens) - (row.tail - row.head) - 1) is None
    assert row.cut_left(len(row.tokens)) == row


def test_cut_on_the_right_keeps_a_token_of_the_response(fast):
    row = fast.encode(PROMPT, RESPONSE)
    assert row.cut_right(row.start + 1).tokens == row.tokens[: row.start + 1]
    assert row.cut_right(row.start) is None


def test_text_that_spells_a_special_token_is_text(fast, caplog):
    prompt, response = "what is <|end|> for? <s>", "it <|end|> all"
    row = fast.encode(prompt, response)
    ending = fast.raw.convert_tokens_to_ids("<|end|>")
    assert row.tokens[row.start :].count(ending) == 1
    assert row.tokens[-1] == ending
    assert row.tokens[: row.start].count(ending) == 1  # the template's own
    assert fast.raw.bos_token_id not in row.tokens
    assert fast.raw.decode(row.tokens[row.head : row.tail]) == prompt
    assert fast.raw.decode(row.tokens[row.start : row.end - 1]) == response
    assert fast.spelled == 2
    assert caplog.text.count("contains the string of the special token") == 1


def test_special_tokens_of_the_template_stay_special_next_to_text_that_spells_them(fast):
    """Also where a later message occurs in a header, and in system messages."""
    turns = [("system", "say <|end|> at the end"), ("user", "what is <|end|>?"), ("assistant", "a"), ("user", "ok")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = fast.encode(join_messages(messages), RESPONSE)
    answer = [*messages, {"role": "assistant", "content": RESPONSE}]
    assert fast.raw.decode(row.tokens) == fast.raw.apply_chat_template(answer, tokenize=False).rstrip("\n")
    count = {name: row.tokens.count(fast.raw.convert_tokens_to_ids(name)) for name in ("<|start|>", "<|end|>")}
    assert count == {"<|start|>": 5, "<|end|>": 5}
    assert fast.raw.decode(row.tokens[: row.head]).endswith("<|start|>user\n")
    assert fast.raw.decode(row.tokens[row.head :]).startswith("what is <|end|>?<|end|>")


def test_a_response_that_the_tokenizer_drops_is_named(tmp_path):
    fast = ChatTokenizer(small_lm.tokenizer(tmp_path))
    assert "has no token for the response" in complaint(fast.encode, PROMPT, "é")


def test_messages_reach_the_template_one_by_one(fast):
    turns = [("system", "be kind"), ("user", "how?"), ("assistant", "just mix"), ("user", "it?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = fast.encode(join_messages(messages), RESPONSE)
    answer = [*messages, {"role": "assistant", "content": RESPONSE}]
    whole = fast.raw.apply_chat_template(answer, tokenize=False).rstrip("\n")
    assert fast.raw.decode(row.tokens) == whole
    assert fast.raw.decode(row.tokens[: row.head]).endswith("<|start|>user\n")
    assert fast.raw.decode(row.tokens[row.head :]).startswith("how?<|end|>")
    assert row.tail < row.start


def test_a_prompt_that_looks_like_messages_is_a_text():
    odd = '\x1e[["user","hello"]]'
    prompt = join_messages([{"role": "user", "content": odd}])
    assert messages_of(prompt) == [{"role": "user", "content": odd}]
    assert readable(prompt) == odd


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "there are none"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last one is of role 'assist"),
        ([{"role": "tool", "content": "a"}], "'role' must be system, user, assistant; got 'tool'"),
        ([{"role": "user", "content": 3}], "'content' must be a text, got a int"),
        (["hello"], "must be an object with 'role' and 'content'"),
    ],
)
def test_bad_messages_are_named(messages, reason):
    assert reason in complaint(join_messages, messages, "rows.jsonl:3")


def test_the_frame_is_what_the_template_renders(fast):
    before, after = fast.frame(PROMPT)
    said = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    assert before + RESPONSE + after == fast.raw.apply_chat_template(said, tokenize=False)
    assert before == fast.raw.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)


def test_without_a_template_there_is_a_fallback_that_is_said_once(tmp_path, caplog):
    fast = ChatTokenizer(small_lm.tokenizer(tmp_path, None))
    assert fast.frame(PROMPT) == (f"<s>{PROMPT}\n\n", "</s>")
    fast.frame(PROMPT)
    assert sum("no chat template" in m for m in caplog.messages) == 1


def test_a_template_gets_the_same_date_every_day(tmp_path):
    raw = small_lm.tokenizer(tmp_path, small_lm.DATED)
    assert ChatTokenizer(raw, "2024-07-26").frame(PROMPT)[0].startswith("26 Jul 2024 <|start|>user")
    assert ChatTokenizer(raw).dated
    assert not ChatTokenizer(small_lm.tokenizer(tmp_path)).dated


def test_an_empty_response_is_named(tokenizer):
    assert complaint(tokenizer.encode, PROMPT, " \n").startswith("empty response to 'how do I bake")


def test_a_tokenizer_of_another_model_is_refused(fast, tmp_path):
    check_vocabulary(fast, 300, tmp_path)
    assert complaint(check_vocabulary, fast, 50, tmp_path).startswith(f"{tmp_path}: the tokenizer has ids up to")


def test_a_directory_without_a_tokenizer_is_named(tmp_path):
    assert complaint(load_tokenizer, tmp_path).startswith(f"{tmp_path}: no tokenizer that can be read")
    small_lm.tokenizer(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").raw.chat_template == small_lm.TEMPLATE


def test_a_template_that_raises_is_one_line(tmp_path):
    fast = ChatTokenizer(small_lm.tokenizer(tmp_path / "t", "{{ raise_exception('no user turns') }}"))
    assert "the chat template cannot be used (no user turns)" in complaint(fast.frame, "hey")
