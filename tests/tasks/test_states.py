"""States below the adapted layers are computed once per text, for every model that shares the layers."""

import numpy as np
import pytest

from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.peft import save_lora
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.tasks import states
from fssa_jax.tasks.reference import stored_reference
from fssa_jax.tasks.states import texts_with_states
from tests.lm.test_peft import factors


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def task(steered):
    return Workdir.open(steered).task


def files(cache):
    return sorted(cache.rglob("states/*.npz"))


def never(*_):
    raise AssertionError("computed again")


def test_they_are_read_where_they_were_computed_before(task, cache, monkeypatch):
    one = texts_with_states(task.base, task.tokens, 1)
    assert one.layers == 1
    assert one.states.shape == (*task.tokens.tokens.shape, task.base.decoder.config.width)
    monkeypatch.setattr(states, "table_states", never)
    again = texts_with_states(task.base, task.tokens, 1)
    np.testing.assert_array_equal(one.states, again.states)
    assert texts_with_states(task.base, task.tokens, 0).states is None
    with pytest.raises(AssertionError, match="computed again"):
        texts_with_states(task.base, task.tokens, 2)  # after another number of layers
    with pytest.raises(AssertionError, match="computed again"):
        texts_with_states(task.base, task.tokens.rows(np.arange(5)), 1)  # of other texts


def test_a_lora_of_the_layers_above_shares_them_and_one_below_does_not(task, cache, tmp_path, monkeypatch):
    config, name = task.base.decoder.config, task.config.policy.base
    for layers in (1, 2):
        save_lora(tmp_path / f"last {layers}", factors(config, 2, 0, layers=layers), config, name)
    expected = texts_with_states(task.base, task.tokens, 1)
    monkeypatch.setattr(states, "table_states", never)
    above, below = (load_base(str(tmp_path / f"last {layers}")) for layers in (1, 2))
    np.testing.assert_array_equal(texts_with_states(above, task.tokens, 1).states, expected.states)
    with pytest.raises(AssertionError, match="computed again"):
        texts_with_states(below, task.tokens, 1)


def test_the_reference_is_computed_from_them(task, cache, tmp_path):
    whole = table_log_probs(task.base, task.tokens)
    short = stored_reference(task.base, task.tokens, tmp_path / "reference.npz", layers=1)
    np.testing.assert_allclose(short, whole, rtol=1e-5, atol=1e-4)
    assert np.abs(whole).max() > 1
    assert len(files(cache)) == 1


def test_damaged_ones_are_made_anew_and_the_oldest_go_first(task, cache, monkeypatch):
    expected = texts_with_states(task.base, task.tokens, 1).states
    [file] = files(cache)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(texts_with_states(task.base, task.tokens, 1).states, expected)
    assert file.read_bytes() != bytes(content)
    monkeypatch.setattr(states, "_CACHED", file.stat().st_size)  # no room for two
    texts_with_states(task.base, task.tokens, 2)
    assert file not in files(cache)
    assert len(files(cache)) == 1
    [left] = files(cache)
    monkeypatch.setattr(states, "_CACHED", 10)  # none for one: the others stay
    texts_with_states(task.base, task.tokens, 1)
    assert files(cache) == [left]


def test_half_precision_comes_back_bit_for_bit(task, cache, monkeypatch):
    base = load_base(task.config.policy.base, "bfloat16")
    expected = texts_with_states(base, task.tokens, 1).states
    monkeypatch.setattr(states, "table_states", never)
    again = texts_with_states(base, task.tokens, 1).states
    assert again.dtype == expected.dtype == "bfloat16"
    np.testing.assert_array_equal(np.asarray(again).view(np.uint16), np.asarray(expected).view(np.uint16))


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(task, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert texts_with_states(task.base, task.tokens, 1).states is not None
