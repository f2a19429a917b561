"""Adapters of the last layers: what the layers below say of a text is computed once, and nothing else changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.peft import save_lora
from fssa_jax.ops.adapters import adapter_layers
from fssa_jax.ops.padding import best_plan
from fssa_jax.tasks.task import MAIN
from tests.mistakes import complaint
from tests.policy_steps import first_rows, start, step_of, with_adapter


@pytest.fixture(scope="module")
def made(steered):
    return Workdir.open(steered)


def task_of(made, keep, kind="lora_core", remat="none", **settings):
    """The task with adapters of one of the two layers, and the states below them kept or not."""
    config = with_adapter(made.config, kind, layers=1, **settings)
    config.policy.cache_states, config.policy.remat = keep, remat
    base = load_base(config.policy.base, remat=remat) if remat != "none" else made.task.base
    task = dataclasses.replace(made.task, config=config, base=base)
    return dataclasses.replace(task)  # nothing cached is shared


def step(task, plan=None):
    optimizer = optax.sgd(1.0)
    state, tables = start(task, optimizer, moved=True), task.tables("train")
    after, metrics = jax.jit(step_of(task, optimizer, plan))(state, tables)
    return metrics, jax.tree.map(jnp.subtract, state.params, after.params)


def assert_near(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["film", "lora_core"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_kept_states_change_neither_loss_nor_gradient(made, kind, remat):
    kept, run = (task_of(made, keep, kind, remat) for keep in ("yes", "no"))
    assert (kept.cached_layers, run.cached_layers) == (1, 0)
    assert kept.tables("train").texts.states.shape[:2] == kept.tokens.tokens.shape
    (metrics, gradient), (expected, by) = step(kept), step(run)
    assert_near(metrics, expected)
    assert_near(gradient, by)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4


def test_kept_states_fit_every_plan(made):
    kept, run = (task_of(made, keep) for keep in ("yes", "no"))
    tables = kept.tables("train")
    ids = np.asarray(kept.texts(first_rows(kept, tables))).ravel()
    plan = best_plan(np.sort(np.asarray(tables.texts.ends)[ids])[::-1], 3, tables.texts.tokens.shape[1])
    assert len(plan) > 1
    narrow = ((len(ids), plan[0][1]),)
    assert narrow[0][1] < tables.texts.tokens.shape[1] or plan[0][1] == tables.texts.tokens.shape[1]
    expected = step(run)
    for each in (plan, narrow):
        assert_near(step(kept, each), expected)


def test_people_are_scored_alike(made):
    values = []
    for keep in ("yes", "no"):
        task = task_of(made, keep)
        state = start(task, optax.sgd(1.0), moved=True)
        scorer = task.scorer(MAIN, task.dataset.splits["test"])
        z = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
        ids = np.flatnonzero(task.tokens.lengths)[:9]
        values.append(scorer.log_ratios(state.trained, z, np.arange(9) % 3, ids))
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)
    assert np.abs(values[0]).max() > 1e-2


def test_only_few_states_are_kept_unless_asked_for(made, monkeypatch):
    task = task_of(made, "auto")
    assert task.cached_layers == 1
    monkeypatch.setattr("fssa_jax.tasks.states.device_memory", lambda: 1000)
    assert task_of(made, "auto").cached_layers == 0
    assert task_of(made, "yes").cached_layers == 1


def test_a_lora_of_the_last_layers_names_them(made, tmp_path):
    task = task_of(made, "no")
    state = start(task, optax.sgd(1.0), moved=True)
    adapters = task.conditioner().apply(state.trained, jnp.ones((1, 8)), method="adapt")
    assert adapter_layers(adapters) == 1
    save_lora(tmp_path / "lora", adapters, task.base.decoder.config)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert settings["layers_to_transform"] == [1]


def test_more_layers_than_there_are_are_refused(made):
    config = with_adapter(made.config, "film", layers=3)
    task = dataclasses.replace(made.task, config=config)
    assert complaint(task.conditioner) == "config.policy.adapter.layers: the base has 2 layers, not 3"
