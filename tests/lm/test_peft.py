"""LoRA in the format of PEFT: what is written is read and merged into its base, and what cannot be is named."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fssa_jax.lm.base import load_base
from fssa_jax.lm.peft import SETTINGS, TENSORS, is_lora, read_lora, save_lora
from fssa_jax.models.decoder import place_sizes
from fssa_jax.ops.adapters import LowRank
from tests.mistakes import complaint

TOKENS = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])
PLACES = ("query", "value", "down")


def factors(config, rank: int, seed: int, layers: int = 1, places=PLACES):
    """Random adapters for everybody, of the last layers."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)  # noqa: E731
    return {p: LowRank(normal(layers, i, rank), normal(layers, rank, o)) for p, i, o in place_sizes(config, places)}


@pytest.fixture(scope="module")
def lora(tiny_base, tmp_path_factory):
    """(adapters, directory) of a LoRA of the last of two layers."""
    directory = tmp_path_factory.mktemp("lora") / "mine"
    adapters = factors(load_base(str(tiny_base)).decoder.config, 3, 0)
    save_lora(directory, adapters, load_base(str(tiny_base)).decoder.config, str(tiny_base))
    return adapters, directory


def logits(base, adapters=None, tokens=TOKENS):
    return base.decoder.apply(base.variables, tokens, adapters)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_with_its_lora_writes_as_the_adapter_does(lora, tiny_base, dtype):
    adapters, directory = lora
    plain, merged = load_base(str(tiny_base), dtype), load_base(str(directory), dtype)
    expected = logits(plain, adapters).astype(jnp.float32)
    apart = jnp.abs(expected - logits(plain).astype(jnp.float32)).max()
    near = jnp.abs(logits(merged).astype(jnp.float32) - expected).max()
    assert near < (1e-4 if dtype == "float32" else 0.2 * apart)
    assert apart > 0.05
    assert {x.dtype for x in jax.tree.leaves(merged.variables)} == {jnp.dtype(dtype)}


def test_it_is_another_model_than_its_base_and_shares_what_it_does_not_change(lora, tiny_base, tmp_path):
    _, directory = lora
    plain, merged = load_base(str(tiny_base)), load_base(str(directory))
    assert is_lora(directory)
    assert not is_lora(tiny_base)
    assert merged.fingerprint != plain.fingerprint
    assert merged.directory == plain.directory
    np.testing.assert_array_equal(*(b.variables["params"]["embedding"] for b in (plain, merged)))
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    assert load_base(str(directory), under=str(moved)).fingerprint == merged.fingerprint
    other = tmp_path / "other"
    save_lora(other, factors(plain.decoder.config, 3, 1), plain.decoder.config, str(tiny_base))
    assert load_base(str(other)).fingerprint != merged.fingerprint


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_that_of_peft(lora, tmp_path, stabilised):
    """ΔW = α/r · B A, or α/√r: what other libraries wrote with α = 12."""
    _, directory = lora
    there = shutil.copytree(directory, tmp_path / "there")
    (there / "digests.json").unlink()
    settings = json.loads((there / SETTINGS).read_text())
    (there / SETTINGS).write_text(json.dumps(settings | {"lora_alpha": 12, "use_rslora": stabilised}))
    assert read_lora(there).scale == pytest.approx(12 / math.sqrt(3) if stabilised else 4)
    before, after, plain = (
        load_base(name) for name in (str(directory), str(there), settings["base_model_name_or_path"])
    )
    kernels = [b.variables["params"]["layers"][1]["down"]["kernel"] for b in (plain, before, after)]
    np.testing.assert_allclose(kernels[2] - kernels[0], read_lora(there).scale * (kernels[1] - kernels[0]), atol=1e-5)


def test_a_person_on_top_of_a_lora_is_one_lora_of_the_model_below(lora, tiny_base, tmp_path):
    """Of other places, layers and ranks than the one below."""
    _, directory = lora
    merged = load_base(str(directory))
    config = merged.decoder.config
    person = factors(config, 2, 5, layers=2, places=("value", "gate"))
    save_lora(tmp_path / "person", person, config, str(tiny_base), under=merged.lora)
    both = load_base(str(tmp_path / "person"))
    np.testing.assert_allclose(logits(both), logits(merged, person), atol=1e-4)
    settings = json.loads((tmp_path / "person" / SETTINGS).read_text())
    assert settings["r"] == 3 + 2
    assert "layers_to_transform" not in settings
    assert settings["target_modules"] == ["down_proj", "gate_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora = True is not supported; merge the adapter with PEFT"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "no readable LoRA"),
        ({"r": "many"}, "no readable LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' is not supported"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"r": 4}, "which do not fit rank 4"),
        ({"base_model_name_or_path": None}, "a LoRA that names no base; set base_model_name_or_path"),
        ({"base_model_name_or_path": "/no/such/base"}, "a LoRA of /no/such/base, which is not there; set base_model"),
    ],
)
def test_settings_that_cannot_be_merged_are_named(lora, tmp_path, settings, words):
    there = shutil.copytree(lora[1], tmp_path / "there")
    (there / "digests.json").unlink()
    (there / SETTINGS).write_text(json.dumps(json.loads((there / SETTINGS).read_text()) | settings))
    message = complaint(load_base, str(there))
    assert words in message
    assert "\n" not in message


def test_tensors_that_do_not_fit_are_named(lora, tmp_path):
    first = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

    def with_tensors(change):
        there = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(lora[1], there)
        (there / "digests.json").unlink()
        tensors = load_file(there / TENSORS)
        change(tensors)
        save_file(tensors, there / TENSORS)
        return complaint(load_base, str(there))

    assert "q_proj have shapes None" in with_tensors(lambda t: t.pop(first))
    assert "which do not fit rank 3 of (16, 16)" in with_tensors(lambda t: t.update({first: t[first][:, :5].copy()}))
    assert "which do not fit" in with_tensors(lambda t: t.update({first: t[first][:2].copy()}))
    assert "which do not fit" in with_tensors(lambda t: t.update({first.replace("lora_A", "lora_B"): np.float32([])}))
    assert "holds no tensors" in with_tensors(lambda t: t.clear())
    assert "is of no linear layer" in with_tensors(lambda t: t.update({first.replace("1.self", "7.self"): t[first]}))
    assert "is of no linear layer" in with_tensors(lambda t: t.update({first.replace("lora_A", "lora_C"): t[first]}))


def test_a_damaged_file_and_a_lora_of_a_lora_are_named(lora, tiny_base, tmp_path):
    there = shutil.copytree(lora[1], tmp_path / "there")
    content = bytearray((there / TENSORS).read_bytes())
    content[-7] ^= 1
    (there / TENSORS).write_bytes(content)
    message = complaint(load_base, str(there))
    assert "the checksum of adapter_model.safetensors does not match" in message
    assert "remove digests.json if you changed the file yourself" in message
    (there / "digests.json").unlink()
    (there / TENSORS).write_bytes(content[:50])
    assert "no readable LoRA" in complaint(load_base, str(there))
    (there / TENSORS).unlink()
    assert "no readable LoRA" in complaint(load_base, str(there))
    config = load_base(str(tiny_base)).decoder.config
    save_lora(tmp_path / "twice", factors(config, 2, 3), config, str(lora[1]))
    assert "is a LoRA too; give the model below that" in complaint(load_base, str(tmp_path / "twice"))
    own = shutil.copytree(lora[1], tmp_path / "own")
    (own / "digests.json").unlink()
    settings = json.loads((own / SETTINGS).read_text())
    (own / SETTINGS).write_text(json.dumps(settings | {"base_model_name_or_path": str(own)}))
    assert "is a LoRA too" in complaint(load_base, str(own))


def test_a_base_next_to_the_lora_is_found_from_any_directory(lora, tiny_base, tmp_path, monkeypatch):
    there = shutil.copytree(lora[1], tmp_path / "moved" / "lora")
    shutil.copytree(tiny_base, tmp_path / "moved" / "base")
    (there / "digests.json").unlink()
    settings = json.loads((there / SETTINGS).read_text())
    (there / SETTINGS).write_text(json.dumps(settings | {"base_model_name_or_path": "../base"}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_base(str(there)).fingerprint == load_base(str(lora[1])).fingerprint


def test_a_lora_replaces_a_lora_and_nothing_else(lora, tiny_base, tmp_path):
    """Steering weights hold a LoRA too, next to what would be lost."""
    config = load_base(str(tiny_base)).decoder.config
    there = shutil.copytree(lora[1], tmp_path / "there")
    save_lora(there, factors(config, 1, 4), config, str(tiny_base))
    assert read_lora(there).rank == 1
    (there / "steering.json").write_text("{}")
    assert "holds more than a LoRA" in complaint(save_lora, there, factors(config, 2, 4), config)
    assert read_lora(there).rank == 1
