"""A policy on a GGUF file: trained from a relative path, used from another directory, and its base told apart."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import fssa_jax
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from tests import gguf_files, tiny, tiny_policy
from tests.mistakes import complaint


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Rows, a language model as a directory and as a GGUF file, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows())
    tiny_policy.base(tmp_path / "base")
    write(tmp_path)
    return tmp_path


def write(directory, **changes):
    config = json.loads((directory / "base" / "config.json").read_text()) | {"rope_theta": 10_000.0, **changes}
    tokenizer = gguf_files.byte_level(load_base(str(directory / "base")).tokenizer.raw)
    tensors = load_file(directory / "base" / "model.safetensors")
    gguf_files.write(directory / "base.gguf", tensors, config, tokenizer)


def test_a_policy_is_trained_and_used_on_a_file(directory, monkeypatch):
    monkeypatch.chdir(directory)
    train(tiny_policy.config(directory / "rows.jsonl", "base.gguf"), directory / "policy")
    train(tiny_policy.config(directory / "rows.jsonl", "base"), directory / "same")
    (directory / "elsewhere").mkdir()
    monkeypatch.chdir(directory / "elsewhere")
    policy, same = (fssa_jax.load(directory / name) for name in ("policy", "same"))
    assert Workdir.open(directory / "policy").config.policy.base == str(directory / "base.gguf")
    choices = [("question 0", "word1 word2", "word3"), ("question 1", "word4", "word5 word6")]
    latents = [model.infer(choices) for model in (policy, same)]
    np.testing.assert_allclose(latents[0].mean, latents[1].mean, rtol=1e-4, atol=1e-6)
    texts = [model.generate(model.adapt(q), ["question 0"]) for model, q in zip((policy, same), latents, strict=True)]
    assert texts[0] == texts[1]
    write(directory, rms_norm_eps=1e-3)
    assert "of another language model" in complaint(fssa_jax.load, directory / "policy")
    (directory / "base.gguf").unlink()
    assert "its language model is not in" in complaint(fssa_jax.load, directory / "policy")
