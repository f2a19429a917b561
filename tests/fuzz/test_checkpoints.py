"""Hundreds of damaged checkpoint directories: the newest whole checkpoint is restored exactly, or one line says why."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.train.checkpoint import Checkpoints
from tests.mistakes import outcome

pytestmark = pytest.mark.fuzz


def parts(step):
    values = np.random.default_rng(step).normal(size=(7, 5)).astype(np.float32)
    return {
        "variables": {"params": {"kernel": jnp.asarray(values), "bias": jnp.arange(5.0)}},
        "optimiser": {"step": jnp.array(step), "mu": {"kernel": jnp.asarray(2 * values)}},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "latest"
    store = Checkpoints(directory, 3)
    for step in (10, 20, 30):
        store.save(step, parts(step), {"nll": 1 / step})
    return directory


def damage(rng, directory):
    """Flips, cuts, removes, empties, swaps or adds files and directories of the newest checkpoints."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for _ in range(rng.integers(1, 4)):
        path = files[rng.integers(len(files))]
        if not path.exists():
            continue
        content = bytearray(path.read_bytes())
        how = rng.integers(7)
        if how == 0 and content:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
        elif how == 1:
            path.write_bytes(content[: len(content) // 2])
        elif how == 2:
            path.unlink()
        elif how == 3:
            path.write_bytes(b"")
        elif how == 4:
            other = files[rng.integers(len(files))]
            if other.exists():
                path.write_bytes(other.read_bytes())
        elif how == 5:
            shutil.rmtree(path.parent, ignore_errors=True)
        else:
            path.write_bytes(b'{"content": {}, "crc32": 0}')


@pytest.mark.parametrize("block", range(6))
def test_300_damaged_checkpoint_directories(whole, tmp_path, block):
    found = {step: 0 for step in (10, 20, 30, None)}
    for seed in range(50):
        directory = tmp_path / str(seed)
        shutil.copytree(whole, directory)
        damage(np.random.default_rng(1000 * block + seed), directory)
        store = Checkpoints(directory, 3)
        for read in (lambda store=store: store.restore(parts(0)), store.load_variables):
            restored, _ = outcome(read)
            if restored is None:
                found[None] += 1
                continue
            step, loaded = restored
            found[step] += 1
            variables = loaded.get("variables", loaded)
            np.testing.assert_array_equal(
                variables["params"]["kernel"], parts(step)["variables"]["params"]["kernel"], err_msg=f"seed {seed}"
            )
        for step in store.steps:
            store.metrics(step)
    assert found[30] > 10
    assert found[20] + found[10] > 5
