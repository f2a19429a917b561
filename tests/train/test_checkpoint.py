"""Checkpoints: the newest that is whole, read without an optimiser, nothing lost when one is damaged or unwritable."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.files import digest_file, seal, unseal
from fssa_jax.train import checkpoint, loop
from fssa_jax.train.checkpoint import Checkpoints, best_or_latest_variables
from fssa_jax.train.digests import check_array, digest_array
from fssa_jax.train.step import TrainState
from tests.mistakes import complaint


def parts(value: float, width: int = 2):
    params = {"encoder": {"w": jnp.full((3, width), float(value)), "b": jnp.arange(5, dtype=jnp.bfloat16) + int(value)}}
    optimiser = {"step": jnp.asarray(int(value)), "opt_state": optax.adamw(1e-3).init(params)}
    return {"variables": {"params": params}, "optimiser": optimiser}


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def data_files(path: Path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


def damage(path: Path):
    for file in data_files(path):
        file.write_bytes(b"damaged")


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "here", keep=2)


def test_nothing_is_restored_from_nothing(store):
    assert store.steps == []
    assert store.restore(parts(0)) is None
    assert store.load_variables() is None
    assert complaint(best_or_latest_variables, store, store) == f"{store.directory}: no checkpoint"


def test_the_newest_are_kept_and_the_newest_is_restored(store):
    for step in (1, 2, 3):
        store.save(step, parts(step), {"nll": 0.5 * step})
    assert store.steps == [2, 3]
    assert sorted(os.listdir(store.directory)) == ["2", "3"]
    step, restored = store.restore(parts(0))
    assert step == 3
    assert bits(restored) == bits(parts(3))
    assert jax.tree.structure(restored) == jax.tree.structure(parts(3))
    assert store.metrics(2) == {"nll": 1.0}
    assert store.metrics(7) == {}


def test_a_step_that_is_saved_again_is_replaced(store):
    store.save(1, parts(1), {"nll": 1.0})
    store.save(1, parts(5))
    assert bits(store.restore(parts(0))[1]) == bits(parts(5))
    assert store.metrics(1) == {}


def test_a_run_that_went_back_keeps_what_it_saves(store):
    """Behind a later checkpoint that is damaged, or of a best that this run has not reached again."""
    for step in (4, 6, 5):
        store.save(step, parts(step))
    assert store.steps == [4, 5]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_no_damage(tmp_path, monkeypatch, caplog):
    writer, reader = Checkpoints(tmp_path, 1), Checkpoints(tmp_path, 1, read_only=True)
    writer.save(1, parts(1))
    check = reader._check_files

    def slow(step, names):
        if step == 1:
            writer.save(2, parts(2))
        return check(step, names)

    monkeypatch.setattr(reader, "_check_files", slow)
    assert reader.load_variables()[0] == 2
    assert not caplog.text


def test_what_a_killed_process_left_is_removed(store):
    store.save(1, parts(1))
    for name in (".2.77.tmp", ".1.77.old"):
        (store.directory / name / "arrays").mkdir(parents=True)
    assert Checkpoints(store.directory, 2, read_only=True).steps == [1]
    assert len(os.listdir(store.directory)) == 3
    Checkpoints(store.directory, 2)
    assert os.listdir(store.directory) == ["1"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(store, caplog):
    store.save(1, parts(1))
    store.save(2, parts(2))
    damage(store.directory / "2")
    assert store.restore(parts(0))[0] == 1
    assert "checkpoint 2 is damaged" in caplog.text
    damage(store.directory / "1")
    assert complaint(store.restore, parts(0)).startswith(f"{store.directory}: no readable checkpoint")
    assert complaint(store.load_variables).startswith(f"{store.directory}: no readable checkpoint")


def test_no_flipped_bit_is_ever_restored(store, caplog):
    """In every file of a checkpoint: what is read is exact, or the checkpoint is named and the one before is taken."""
    for step in (1, 2):
        store.save(step, parts(step), {"nll": 0.5})
    whole = {step: bits(parts(step)) for step in (1, 2)}
    variables = {step: bits(parts(step)["variables"]) for step in (1, 2)}
    rng = np.random.default_rng(0)
    files = data_files(store.directory / "2")
    assert len(files) > 10
    detected = 0
    for number in range(72):
        file = files[number % len(files)]
        good = file.read_bytes()
        flipped = bytearray(good)
        at = int(rng.integers(8 * len(good)))
        flipped[at // 8] ^= 1 << at % 8
        file.write_bytes(flipped)
        caplog.clear()
        step, restored = store.restore(parts(0))
        assert bits(restored) == whole[step], file
        assert ("checkpoint 2 is damaged" in caplog.text) == (step == 1)
        detected += step == 1
        step, read = store.load_variables()
        assert bits(read) == variables[step], file
        assert store.metrics(2) in ({"nll": 0.5}, {})
        file.write_bytes(good)
    assert detected > 60
    assert store.restore(parts(0))[0] == 2


@pytest.mark.parametrize("lost", ["digests.json", "arrays/variables", "arrays/_CHECKPOINT_METADATA"])
def test_a_lost_file_is_noticed(store, lost, caplog):
    for step in (1, 2):
        store.save(step, parts(step))
    path = store.directory / "2" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert bits(store.load_variables()[1]) == bits(parts(1)["variables"])
    assert "checkpoint 2 is damaged" in caplog.text


def test_arrays_are_compared_with_what_was_in_memory(store, monkeypatch, caplog):
    """Files that were written wrong, under checksums of what was written."""
    store.save(1, parts(1))
    saved = checkpoint.ocp.save_checkpointables
    monkeypatch.setattr(
        checkpoint.ocp,
        "save_checkpointables",
        lambda path, flat: saved(path, jax.tree.map(lambda x: x.at[..., -1:].add(1) if x.ndim else x, flat)),
    )
    store.save(2, parts(2))
    for found in (store.restore(parts(0)), store.load_variables()):
        assert found[0] == 1
    assert "checkpoint 2 is damaged (the checksum of variables/params/encoder/b does not match)" in caplog.text


def test_damage_to_the_optimiser_alone_does_not_hide_the_variables(store, caplog):
    store.save(1, parts(1))
    store.save(2, parts(2))
    damage(store.directory / "2" / "arrays" / "optimiser")
    assert store.load_variables()[0] == 2
    assert not caplog.text
    assert store.restore(parts(0))[0] == 1


def test_renamed_and_swapped_checkpoints_are_noticed(store, caplog):
    store.save(1, parts(1))
    store.save(2, parts(2))
    (store.directory / "2").rename(store.directory / "3")
    assert store.restore(parts(0))[0] == 1
    assert "checkpoint 3 is damaged (it is of step 2)" in caplog.text
    (store.directory / "1").rename(store.directory / "2")
    (store.directory / "3").rename(store.directory / "1")
    assert "no readable checkpoint" in complaint(store.load_variables)


def test_swapped_arrays_are_noticed(store, caplog):
    store.save(1, parts(1))
    store.save(2, parts(2))
    one, two = (store.directory / name / "arrays" for name in "12")
    one.rename(store.directory / ".aside")
    two.rename(one)
    (store.directory / ".aside").rename(two)
    assert "no readable checkpoint" in complaint(store.load_variables)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe{", b"[]", b'{"nll": 0.1}', b'{"content": {"nll": 0.1}, "crc32": 7}']
)
def test_a_damaged_metrics_file_costs_that_file_only(store, content, caplog):
    store.save(1, parts(1), {"nll": 0.5})
    (store.directory / "1" / "metrics.json").write_bytes(content)
    again = Checkpoints(store.directory, keep=2)
    assert again.metrics(1) == {}
    assert "1/metrics.json: damaged" in caplog.text
    assert bits(again.restore(parts(0))[1]) == bits(parts(1))


def test_a_checkpoint_that_orbax_cannot_read_is_one_line(store, caplog, capfd):
    """Such as one of a later orbax: whole, but in another form."""
    store.save(1, parts(1))
    file = "arrays/variables/_METADATA"
    (store.directory / "1" / file).write_text('{"tree_metadata": 3}')
    digests = unseal(json.loads((store.directory / "1" / "digests.json").read_text()))
    digests["files"][file] = digest_file(store.directory / "1" / file)
    (store.directory / "1" / "digests.json").write_text(json.dumps(seal(digests)))
    assert complaint(store.load_variables).startswith(f"{store.directory}: no readable checkpoint")
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("fssa_jax")]
    assert len(ours) == 1
    assert "\n" not in ours[0]
    assert "Traceback" not in capfd.readouterr().err


def test_the_best_that_cannot_be_read_gives_way_to_the_latest(store, tmp_path, caplog):
    best = Checkpoints(tmp_path / "best", 1)
    best.save(1, parts(1))
    store.save(2, parts(2))
    assert best_or_latest_variables(best, store)[0] == 1
    damage(best.directory)
    step, variables = best_or_latest_variables(best, store)
    assert step == 2
    assert bits(variables) == bits(parts(2)["variables"])
    assert f"{best.directory}: no readable checkpoint; using the latest one" in caplog.text


def test_variables_come_as_arrays_of_the_host_in_the_checkpoints_own_shapes(store):
    store.save(4, parts(4))
    step, variables = store.load_variables()
    assert step == 4
    assert jax.tree.structure(variables) == jax.tree.structure(parts(4)["variables"])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(variables))
    assert bits(variables) == bits(parts(4)["variables"])
    shapes = jax.eval_shape(lambda: parts(0)["variables"])
    assert bits(store.load_variables(shapes)[1]) == bits(variables)


def test_variables_are_read_where_no_optimiser_is_built_and_nothing_compiled(store):
    store.save(4, parts(4))
    code = """
import sys
from pathlib import Path
import jax
from jax._src import compiler
def compiled(*_, **__):
    raise AssertionError("compiled")
compiler.compile_or_get_cached = compiler.backend_compile_and_load = compiled
from fssa_jax.train.checkpoint import Checkpoints
step, variables = Checkpoints(Path(sys.argv[1]), 1, read_only=True).load_variables()
assert "optax" not in sys.modules
print(step, variables["params"]["encoder"]["w"].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.directory)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "4 [[4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]\n", done.stderr


def test_another_structure_is_one_clear_mistake_and_no_damage(store, caplog):
    store.save(1, parts(1))
    store.save(2, parts(2))
    wider = complaint(store.restore, parts(2, width=3))
    assert wider == (
        f"{store.directory}/2: params/encoder/w is (3, 2) float32 there and (3, 3) float32 in the model; "
        "train into a new --workdir"
    )
    assert complaint(store.load_variables, parts(2, width=3)["variables"]) == wider
    assert complaint(best_or_latest_variables, store, store, parts(2, width=3)["variables"]) == wider
    for like, found in (
        ({"params": {}}, "params/encoder/b is (5,) bfloat16 there and absent in the model"),
        (parts(2)["variables"] | {"batch_stats": np.zeros(2)}, "batch_stats is absent there and (2,) float64 in"),
    ):
        assert found in complaint(store.load_variables, like)
    assert not caplog.text


@pytest.mark.parametrize("average", [False, True])
def test_a_training_state_comes_back_whole_and_its_variables_are_the_average(store, average):
    params, stats = {"w": jnp.arange(3.0)}, {"mean": jnp.ones(2)}
    kept = {"w": jnp.arange(3.0) + 0.5} if average else {}
    state = TrainState(jnp.asarray(7), params, stats, optax.adamw(1e-3).init(params), kept)
    store.save(7, loop._parts(state))
    blank = jax.tree.map(jnp.zeros_like, state)
    restored = loop._state(store.restore(loop._parts(blank))[1])
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)
    variables = store.load_variables(jax.eval_shape(lambda: state.variables))[1]
    np.testing.assert_array_equal(variables["params"]["w"], (kept or params)["w"])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [1, 1])


def test_a_part_without_arrays_is_kept(store):
    state = TrainState(jnp.asarray(1), {"w": jnp.ones(2), "none": {}}, {}, optax.sgd(1e-3).init({}), {})
    store.save(1, loop._parts(state))
    assert loop._state(store.restore(loop._parts(state))[1]).params.keys() == {"w", "none"}


def test_names_that_fall_together_are_refused(store):
    with pytest.raises(ValueError, match="without a slash"):
        store.save(1, {"variables": {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}})
    assert store.steps == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert complaint(Checkpoints, tmp_path / "file" / "x", 1).startswith(f"{tmp_path}/file/x: cannot be written")


def test_a_failed_write_leaves_the_one_before(store, monkeypatch):
    store.save(1, parts(1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save_checkpointables", full)
    message = complaint(store.save, 2, parts(2))
    assert "step 2 cannot be written ([Errno 28] No space left on device)" in message
    assert message.endswith("the last good checkpoint is step 1")
    assert store.restore(parts(0))[0] == 1
    assert os.listdir(store.directory) == ["1"]


_SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from fssa_jax.train.checkpoint import Checkpoints
from fssa_jax.train.digests import check_array, digest_array

x = np.arange(48, dtype=np.float32).reshape(8, 6)
wrong = x.copy()
wrong[5, 4] = np.nextafter(wrong[5, 4], 99)
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
specs = (P(), P("a"), P(None, "b"), P("a", "b"), P(("a", "b")))
shards = [jax.device_put(x, NamedSharding(mesh, spec)) for spec in specs]
print([len(digest_array(each)["pieces"]) for each in (x, *shards)])
for one in shards:
    for other in (x, *shards):
        check_array("x", other, digest_array(one))
        try:
            check_array("x", jax.device_put(wrong, other.sharding) if other is not x else wrong, digest_array(one))
            print("a wrong array passes", one.sharding, other.sharding)
        except ValueError:
            pass
store = Checkpoints(Path(sys.argv[1]), 1)
state = {"variables": dict(zip("abcde", shards)), "optimiser": {"m": shards[3]}}
store.save(1, state)
restored = store.restore(state)[1]
print(all(restored["variables"][name].sharding == x.sharding for name, x in state["variables"].items()))
"""


def test_sharded_arrays_are_digested_shard_by_shard_and_read_in_any_sharding(store):
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED, str(store.directory)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["[1, 1, 2, 2, 4, 4]", "True"], done.stderr
    x = np.arange(48, dtype=np.float32).reshape(8, 6)
    assert bits(store.load_variables()[1]) == bits(dict.fromkeys("abcde", x))  # by one device what four have written


@pytest.mark.parametrize("wrong", [np.ones((3, 2)), np.ones((2, 3), np.float32), np.zeros((2, 3)), np.ones((2, 2))])
def test_another_array_is_not_the_digested_one(wrong):
    digest = json.loads(json.dumps(digest_array(np.ones((2, 3)))))
    check_array("w", np.ones((2, 3)), digest)
    with pytest.raises(ValueError, match=r"^(w is .* not \[2, 3\] float64|the checksum of w does not match)$"):
        check_array("w", wrong, digest)


def test_a_seal_shows_every_change():
    text = json.dumps(seal({"step": 12, "crc": [3, 0.5], "name": "x/y"}))
    assert unseal(json.loads(text)) == {"step": 12, "crc": [3, 0.5], "name": "x/y"}
    for at in range(8 * len(text)):
        flipped = bytearray(text.encode())
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError):  # noqa: PT011
            unseal(json.loads(flipped))


def test_a_directory_that_was_removed_is_not_made_again(store):
    store.save(1, parts(1))
    shutil.rmtree(store.directory)
    assert "was removed while it was in use" in complaint(store.save, 2, parts(2))
    assert not store.directory.exists()
