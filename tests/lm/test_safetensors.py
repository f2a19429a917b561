"""Checkpoints in the Hugging Face format: what is saved is loaded; what does not fit is listed."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fssa_jax.lm import safetensors as pretrained
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.weight_map import weight_map
from fssa_jax.models.bert import BertEncoder
from tests import small_lm
from tests.mistakes import complaint


@pytest.fixture
def saved(tmp_path):
    model, variables = small_lm.save_decoder(tmp_path / "model")
    return tmp_path / "model", model, variables


def rewrite(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_what_is_saved_is_loaded(saved):
    directory, model, variables = saved
    config = read_config(directory)
    assert dataclasses.replace(config, rope_frequencies=()) == model.config
    np.testing.assert_allclose(config.frequencies, model.config.frequencies, rtol=1e-6)
    assert_same(pretrained.load_params(directory, config), variables)
    assert {p.name for p in directory.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    half = pretrained.load_params(directory, config, jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


def test_many_shards_are_one_model(saved):
    directory, model, variables = saved
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in files.items():
        save_file({n: tensors[n] for n in mine}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {n: file for file, mine in files.items() for n in mine}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(pretrained.load_params(directory, model.config), variables)


def test_leaves_go_where_the_sharding_says(saved):
    directory, model, _variables = saved
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    asked = []
    loaded = pretrained.load_params(
        directory, model.config, None, lambda path, shape: asked.append((path, shape)) or where
    )
    assert (("layers", 2, "query", "kernel"), (32, 32)) in asked
    assert all(x.sharding == where for x in jax.tree.leaves(loaded))


def test_a_sharded_leaf_is_read_in_its_parts_alone(saved):
    directory, model, variables = saved
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    shards = pretrained._Shards(directory)
    weight = next(w for w in weight_map(model.config) if w.path == ("layers", 1, "up", "kernel"))
    index = (slice(8, 16), slice(4, 40))
    part = pretrained._piece(shards, weight, weight.name, None, index)
    np.testing.assert_array_equal(part, np.asarray(variables["params"]["layers"][1]["up"]["kernel"])[index])
    loaded = pretrained.load_params(
        directory, model.config, None, lambda path, _: split if path[0] == "layers" else None
    )
    assert_same(loaded, variables)


def test_a_checkpoint_in_many_files_is_the_same(saved):
    directory, model, variables = saved
    out = directory.with_name("shards")
    pretrained.save_params(out, variables, model.config, directory, shard_bytes=20_000)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(sum(t.nbytes for t in load_file(f).values()) <= 20_000 for f in files)
    assert_same(pretrained.load_params(out, model.config), variables)


def test_all_that_is_no_weight_is_copied(saved):
    directory, model, variables = saved
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    (directory / "onnx.bin").write_bytes(b"weights of another kind")
    pretrained.save_params(directory.with_name("copy"), variables, model.config, directory)
    copied = {
        str(p.relative_to(directory.with_name("copy"))) for p in directory.with_name("copy").rglob("*") if p.is_file()
    }
    assert "1_Pooling/config.json" in copied
    assert "onnx.bin" not in copied


def test_names_with_and_without_the_head_are_understood(saved):
    directory, model, variables = saved
    tensors = load_file(directory / "model.safetensors")
    save_file({n.removeprefix("model."): t for n, t in tensors.items()}, directory / "model.safetensors")
    assert_same(pretrained.load_params(directory, model.config), variables)


def test_tensors_that_do_not_fit_are_listed(saved):
    directory, model, _ = saved

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.0.extra.weight"] = np.zeros(2, np.float32)
        tensors["model.norm.weight"] = np.zeros(5, np.float32)

    rewrite(directory, change)
    message = complaint(pretrained.load_params, directory, model.config)
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in message
    assert "1 not known: model.layers.0.extra.weight" in message
    assert "1 of another shape: model.norm.weight (5,) instead of (32,)" in message


def test_truncated_and_pickled_weights_are_refused(saved):
    directory, model, _ = saved
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert complaint(pretrained.load_params, directory, model.config).startswith(f"{file}: truncated or damaged")
    file.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    assert "no .safetensors file" in complaint(pretrained.load_params, directory, model.config)


def test_directories_that_are_no_model_are_named(tmp_path):
    assert complaint(read_config, tmp_path).startswith(f"{tmp_path}: no config.json")
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    message = complaint(read_config, tmp_path)
    assert "'rwkv' is not supported; known are llama, mistral" in message
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "not the configuration of a model" in complaint(read_config, tmp_path)
    (tmp_path / "config.json").write_text("{nonsense")
    assert complaint(read_config, tmp_path)


def test_bert_checkpoints_too(tmp_path):
    config = small_lm.save_bert(tmp_path / "bert")
    assert read_config(tmp_path / "bert") == config
    written = BertEncoder(config).init(jax.random.key(0), jnp.zeros((1, 2), int), jnp.array([2]))
    assert_same(pretrained.load_params(tmp_path / "bert", config), written)


def test_a_head_of_its_own_is_saved_and_loaded(tmp_path):
    model, variables = small_lm.save_decoder(tmp_path / "model", tied=False)
    assert_same(pretrained.load_params(tmp_path / "model", model.config), variables)
