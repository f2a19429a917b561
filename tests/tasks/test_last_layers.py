"""Adapters of the last layers, and prompts of a pair: what is computed once, and that nothing else changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.packing import packed_lengths
from fssa_jax.lm.peft import save_lora
from fssa_jax.ops.adapters import adapter_layers
from fssa_jax.tasks.task import MAIN
from tests.mistakes import complaint
from tests.policy_steps import first_rows, start, step_of, with_adapter


@pytest.fixture(scope="module")
def made(steered):
    return Workdir.open(steered)


def task_of(made, keep, kind="lora_core", remat="none", share="no", **settings):
    """The task with adapters of one of the two layers, and the states below them kept or not, prompts shared or not."""
    config = with_adapter(made.config, kind, layers=1, **settings)
    config.policy.cache_states, config.policy.remat, config.train.share_prompts = keep, remat, share
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


def plans_of(task):
    """A plan of several groups for the first batch of a task, and one of the longest row."""
    tables = task.tables("train")
    lengths = np.asarray(packed_lengths(tables.texts, task.texts(first_rows(task, tables)))).ravel()
    ranked = np.sort(lengths)[::-1]
    plan = ((3, int(ranked[0])), (len(ranked) - 3, int(ranked[3])))
    return plan, ((len(lengths), plan[0][1]),)


@pytest.mark.parametrize("share", ["yes", "no"])
def test_kept_states_fit_every_plan(made, share):
    kept, run = (task_of(made, keep, share=share) for keep in ("yes", "no"))
    plan, narrow = plans_of(kept)
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


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
@pytest.mark.parametrize("keep", ["yes", "no"])
def test_shared_prompts_change_neither_loss_nor_gradient(made, kind, keep):
    shared, apart = (task_of(made, keep, kind, share=share) for share in ("yes", "no"))
    assert (shared.shares_prompts, apart.shares_prompts) == (True, False)
    tables = shared.tables("train")
    rows, single = (task.texts(first_rows(task, tables)) for task in (shared, apart))
    assert (*rows.shape, 1) == single.shape == (4, 2, 2, 1)
    spared = 1 - packed_lengths(tables.texts, rows).sum() / packed_lengths(tables.texts, single).sum()
    assert spared > 0.1
    (metrics, gradient), (expected, by) = step(shared), step(apart)
    assert_near(metrics, expected)
    assert_near(gradient, by)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient)) > 1e-4
    for plan in plans_of(shared):
        assert_near(step(shared, plan), (expected, by))


def test_shared_prompts_change_no_score(made):
    found = []
    for share in ("yes", "no"):
        task = task_of(made, "yes", share=share)
        split = task.dataset.splits["test"]
        scorer = task.scorer(MAIN, split)
        assert scorer.share == (share == "yes")
        variables = start(task, optax.sgd(1.0), moved=True).trained
        found.append(scorer.predictor(variables).predict(episodes_of(split, np.arange(4), 0, 3), (0, 3)))
    np.testing.assert_allclose(found[0].log_p, found[1].log_p, atol=1e-4)
    for name, values in found[1].named.items():
        np.testing.assert_allclose(found[0].named[name], values, rtol=1e-4, atol=1e-4)
    assert np.abs(found[0].log_p[0] - found[0].log_p[1]).max() > 1e-3


def test_prompts_are_shared_where_it_spares_enough(made, monkeypatch):
    def share(choice):
        return task_of(made, "no", share=choice).shares_prompts

    assert share("auto")
    monkeypatch.setattr("fssa_jax.tasks.policy._WORTH_SHARING", 0.9)
    assert not share("auto")
    assert share("yes")
    monkeypatch.undo()
    # Where attention is fused, it knows no sequences with a common beginning.
    monkeypatch.setattr("fssa_jax.tasks.policy.attention_is_xla", lambda *_: False)
    assert (share("auto"), share("yes")) == (False, True)


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
