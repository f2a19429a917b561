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
from fssa_jax.lm.base import fingerprint, load_base
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.tensor_files import open_tensors
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
    (directory / "digests.json").unlink(missing_ok=True)


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


def in_two_files(directory):
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, mine in files.items():
        save_file({n: tensors[n] for n in mine}, directory / file)
    (directory / "model.safetensors").unlink()
    return {n: file for file, mine in files.items() for n in mine}


def test_many_shards_are_one_model(saved):
    directory, model, variables = saved
    index = {"weight_map": in_two_files(directory)}
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
    shards = open_tensors(directory)
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
    assert "pickled weights are not read" in complaint(pretrained.load_params, directory, model.config)


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


def test_a_single_file_goes_before_an_index(saved):
    """As in transformers; the index may be left over from a checkpoint in several files."""
    directory, model, variables = saved
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(pretrained.load_params(directory, model.config), variables)


@pytest.mark.parametrize("name", ["consolidated", "adapter_model", "optimizer"])
def test_other_safetensors_files_are_not_weights(saved, name):
    directory, model, variables = saved
    before = fingerprint(directory)
    save_file({"model.norm.weight": np.full(32, 7, np.float32)}, directory / f"{name}.safetensors")
    assert_same(pretrained.load_params(directory, model.config), variables)
    assert fingerprint(directory) == before
    (directory / "model.safetensors").unlink()
    assert f"{name}.safetensors hold something else" in complaint(pretrained.load_params, directory, model.config)


def test_an_index_that_lists_other_places_is_refused(saved):
    directory, model, _ = saved
    where = in_two_files(directory)
    index = directory / "model.safetensors.index.json"
    (directory.parent / "outside.safetensors").write_bytes((directory / "a.safetensors").read_bytes())
    for name, reason in {
        "../outside.safetensors": "lists '../outside.safetensors', which is not a file next to it",
        str(directory / "a.safetensors"): "which is not a file next to it",
        "c.safetensors": "lists c.safetensors, which is missing",
    }.items():
        index.write_text(json.dumps({"weight_map": where | {"model.norm.weight": name}}))
        message = complaint(pretrained.load_params, directory, model.config)
        assert message.startswith(f"{index}: ")
        assert reason in message


def test_a_tensor_in_two_shards_names_both(saved):
    directory, model, _ = saved
    where = in_two_files(directory)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    tensors = load_file(directory / "a.safetensors")
    name = next(n for n, file in where.items() if file == "b.safetensors")
    save_file(tensors | {name: np.zeros(2, np.float32)}, directory / "a.safetensors")
    message = complaint(pretrained.load_params, directory, model.config)
    assert "a.safetensors and " in message
    assert f"b.safetensors both hold {name}" in message


def test_a_head_of_its_own_goes_before_what_the_configuration_ties(saved, caplog):
    directory, _, variables = saved
    embedding = np.asarray(variables["params"]["embedding"])
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": embedding.copy()}))
    assert load_base(str(directory)).decoder.config.tied
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    base = load_base(str(directory))
    assert not base.decoder.config.tied
    np.testing.assert_array_equal(base.variables["params"]["head"], (embedding + 1).T)
    assert "the file has a head of its own" in caplog.text


def test_a_checkpoint_may_be_written_into_the_directory_of_its_base(saved):
    """Only what belongs to the base is copied, not what was written there before."""
    directory, model, variables = saved
    for _ in range(2):
        pretrained.save_params(directory / "runs" / "tuned" / "model", variables, model.config, directory)
    assert not (directory / "runs" / "tuned" / "model" / "runs").exists()


def test_a_head_of_its_own_stays_untied_when_it_is_saved(saved):
    directory, _, variables = saved
    embedding = np.asarray(variables["params"]["embedding"])
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    base = load_base(str(directory))
    pretrained.save_params(directory.with_name("copy"), base.variables, base.decoder.config, directory)
    assert not read_config(directory.with_name("copy")).tied


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("num_hidden_layers", 2**31),
        ("hidden_size", 10**12),
        ("vocab_size", -1),
        ("num_attention_heads", 0),
        ("head_dim", 1.5),
    ],
)
def test_a_size_that_no_model_has_is_refused_at_once(saved, name, size):
    directory, _, _ = saved
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {name: size}))
    assert f"{name} is {size}, not a whole number" in complaint(read_config, directory)


def test_a_checkpoint_that_was_damaged_since_it_was_written_is_not_loaded(saved):
    directory, _, _ = saved
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)
        assert f"the checksum of {name} does not match" in complaint(load_base, str(directory))
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)
    load_base(str(directory))
    (directory / "digests.json").unlink()  # as in checkpoints of others
    load_base(str(directory))
