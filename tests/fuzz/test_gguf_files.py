"""Hundreds of damaged GGUF files: each loads, or is refused in one line."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fssa_jax.lm.base import load_base
from tests import gguf_files, small_lm
from tests.mistakes import outcome

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gguf")
    small_lm.save_decoder(directory / "llama")
    config = json.loads((directory / "llama" / "config.json").read_text()) | {"rope_theta": 10_000.0}
    tokenizer = gguf_files.byte_level(load_base(str(directory / "llama")).tokenizer.raw)
    tensors = load_file(directory / "llama" / "model.safetensors")
    return gguf_files.write(directory / "m.gguf", tensors, config, tokenizer).read_bytes()


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_loads_or_is_one_line(whole, seed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(seed)
    header = whole.index(b"blk.2")  # most of what is not weights
    refused = 0
    for number in range(40):
        content = bytearray(whole)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            content[at] = rng.integers(256)
        if rng.random() < 0.2:
            content = content[: rng.integers(len(content))]
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(content)
        base, message = outcome(partial(load_base, str(file)))
        refused += base is None
        assert message or all(np.isfinite(x).all() for x in jax.tree.leaves(base.variables))
        file.unlink()
    assert refused > 10
