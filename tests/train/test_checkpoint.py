"""Checkpoints: the newest that can be read, nothing lost when one is damaged or cannot be written."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.train.checkpoint import Checkpoints
from tests.mistakes import complaint


def tree(value: float):
    return {"w": jnp.full((3, 2), value), "step": jnp.asarray(int(value))}


def damage(checkpoint: Path):
    for file in checkpoint.rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(b"damaged")


@pytest.fixture
def store(tmp_path):
    checkpoints = Checkpoints(tmp_path / "here", keep=2)
    yield checkpoints
    checkpoints.close()


def test_nothing_is_restored_from_nothing(store):
    assert store.steps == []
    assert store.restore(tree(0)) is None


def test_the_newest_are_kept_and_the_newest_is_restored(store):
    for step in (1, 2, 3):
        store.save(step, tree(step), {"nll": 0.5 * step})
    assert store.steps == [2, 3]
    step, restored = store.restore(tree(0))
    assert step == 3
    np.testing.assert_array_equal(restored["w"], tree(3)["w"])
    assert store.metrics(2) == {"nll": 1.0}
    assert store.metrics(7) == {}


def test_a_step_that_is_saved_again_is_replaced(store):
    store.save(1, tree(1))
    store.save(1, tree(5))
    assert store.restore(tree(0))[1]["w"][0, 0] == 5


def test_a_damaged_checkpoint_falls_back_to_the_one_before(store, caplog):
    store.save(1, tree(1))
    store.save(2, tree(2))
    damage(store.directory / "2")
    assert store.restore(tree(0))[0] == 1
    assert "checkpoint 2 is damaged" in caplog.text
    damage(store.directory / "1")
    assert complaint(store.restore, tree(0)).startswith(f"{store.directory}: no readable checkpoint")


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert complaint(Checkpoints, tmp_path / "file" / "x", 1).startswith(f"{tmp_path}/file/x: cannot be written")


def test_a_failed_write_leaves_the_one_before(store, monkeypatch):
    store.save(1, tree(1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._orbax, "save", full)
    message = complaint(store.save, 2, tree(2))
    assert "step 2 cannot be written" in message
    assert message.endswith("the last good checkpoint is step 1")
    assert store.restore(tree(0))[0] == 1
