"""Batches in parts and padded by plans: however they are cut and padded, the gradient is that of the whole batch."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.config import FrozenEncoder, SharedLora
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.ops.padding import best_plan
from fssa_jax.train.batches import padded_calls
from fssa_jax.train.state import make_optimizer
from tests.policy_steps import first_rows, rows_of, start, step_of, with_adapter, with_encoder
from tests.tiny_policy import change
from tests.trees import largest_difference, leaves


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return Workdir.open(steered)


def test_parts_of_a_batch_add_up(made):
    optimizer = make_optimizer(made.config.optim, 4)
    results = []
    for parts in (1, 2):
        config = change(with_encoder(made.config, FrozenEncoder, imitate="reward"), {"train.accumulate": parts})
        task = dataclasses.replace(made.task, config=config)
        state = start(task, optimizer, moved=True)
        results.append(jax.jit(step_of(task, optimizer))(state, task.tables("train")))
    for a, b in zip(leaves(results[0]), leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_texts_of_like_length_are_padded_together_and_nothing_else_changes(made, kind):
    """However a batch is padded, every response has its own person's adapter, and the gradient is the same."""
    config = with_adapter(made.config, kind, places=("query", "gate"), shared=SharedLora(rank=2))
    config.train.share_prompts = "no"
    task = dataclasses.replace(made.task, config=config)
    optimizer, tables = optax.sgd(1.0), task.tables("train")
    state = start(task, optimizer, moved=True)
    ids = np.asarray(task.texts(first_rows(task, tables))).ravel()
    plan = best_plan(np.sort(np.asarray(tables.texts.ends)[ids])[::-1], 3, tables.texts.tokens.shape[1])
    assert len(plan) > 1
    results = [jax.jit(step_of(task, optimizer, p))(state, tables) for p in (None, plan)]
    moved = largest_difference(results[0][0].params["hyper"], state.params["hyper"])
    assert moved > 1e-3
    assert largest_difference(results[0][0].params, results[1][0].params) < 1e-3 * moved
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-5)


@pytest.mark.experiments
@pytest.mark.parametrize(("parts", "share"), [(1, "yes"), (2, "no")])
def test_a_run_by_plans_is_the_run_without_any(made, parts, share):
    """Calls whose texts differ in length take different plans, of several groups; the parameters do not notice."""
    config = change(copy.deepcopy(made.config), {"train.accumulate": parts, "train.share_prompts": share})
    task = dataclasses.replace(made.task, config=config)
    optimizer, tables = optax.sgd(0.1), task.tables("train")
    # Responses of every length: the shorter ones are the beginnings of what they were.
    texts, rng = tables.texts, np.random.default_rng(0)
    lengths = np.asarray(texts.ends - texts.starts) * rng.uniform(0.05, 1, len(texts.ends)) ** 3
    texts = dataclasses.replace(texts, ends=texts.starts + jnp.asarray(np.ceil(lengths), jnp.int32))
    tables = dataclasses.replace(tables, texts=texts)
    used = []

    def watched(plan):
        used.append(plan)
        return step_of(task, optimizer, plan)

    state = start(task, optimizer, moved=True)
    plain = jax.tree.map(jnp.copy, state)
    advance = padded_calls(
        watched,
        lambda step, tables: task.texts(rows_of(task, step, tables)),
        tables,
        "none",
        steps=6,
        steps_per_call=1,
        accumulate=parts,
        buckets=3,
    )
    once = jax.jit(step_of(task, optimizer))
    for number in range(6):
        state, metrics = advance(state, number, 1)
        plain, expected = once(plain, tables)
        np.testing.assert_allclose(metrics["loss"][0], expected["loss"], rtol=1e-5)
    for a, b in zip(leaves(state.params), leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(set(used)) > 1
    assert max(len(plan) for plan in used) > 1
    rows = config.train.users * config.train.targets * (1 if share == "yes" else 2) // parts
    assert all(sum(number for number, _ in plan) == rows for plan in used)
