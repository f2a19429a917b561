"""Supervised fine-tuning: the loss is per token, however a batch is cut or padded; a base is made, or goes on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.experiment.make import make
from fssa_jax.experiment.train import train
from fssa_jax.lm.base import load_base
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
from fssa_jax.lm.scoring import text_log_probs
from fssa_jax.ops.padding import best_plan
from fssa_jax.tasks.sft import SftTask
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.state import start_state
from tests import tiny_policy
from tests.mistakes import complaint
from tests.policy_steps import first_rows, step_of
from tests.trees import largest_difference, leaves


@pytest.fixture(scope="module")
def task(finished, tiny_base, tmp_path_factory):
    """Fine-tuning of the base on the texts of the people of `finished`."""
    config = tiny_policy.sft_config(finished[0] / "rows.jsonl", tiny_base)
    return make(config, tmp_path_factory.mktemp("sft") / "run").task


def of(task: SftTask, **train: int) -> SftTask:
    """The task with other settings of the training."""
    config = dataclasses.replace(task.config, train=dataclasses.replace(task.config.train, **train))
    return dataclasses.replace(task, config=config)


def few(task):
    """Tables whose batches are drawn from the first texts."""
    return dataclasses.replace(task.tables("train"), rows=jnp.arange(40))


def one_step(task, optimizer, plan=None):
    state = start_state(task.start(MAIN, {}), optimizer)
    state, metrics = jax.jit(step_of(task, optimizer, plan))(state, few(task))
    return state.params, metrics["loss"]


def test_parts_of_texts_add_up_too(task):
    """The loss of a base is per token, over the whole batch, however it is cut."""
    results = [one_step(of(task, accumulate=parts), task.optimizer(MAIN)) for parts in (1, 2)]
    assert largest_difference(*(params for params, _ in results)) < 1e-5
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
    tables = few(task)
    ids, texts = first_rows(task, tables).ids, tables.texts
    log_p = text_log_probs(task.base.decoder, task.base.variables, texts, ids)
    expected = -np.asarray(log_p).sum() / np.asarray(texts.ends[ids] - texts.starts[ids]).sum()
    np.testing.assert_allclose(results[0][1], expected, rtol=1e-5)


def test_texts_of_a_base_are_padded_by_plans_too(task):
    task, optimizer = of(task, texts=16), optax.sgd(1.0)
    tables = few(task)
    ids = first_rows(task, tables).ids
    plan = best_plan(np.sort(np.asarray(tables.texts.ends)[ids])[::-1], 3, tables.texts.tokens.shape[1])
    assert len(plan) > 1
    results = [one_step(task, optimizer, p) for p in (None, plan)]
    assert largest_difference(results[0][0], task.start(MAIN, {})["params"]) > 1e-4
    assert largest_difference(results[0][0], results[1][0]) < 1e-5
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


@pytest.mark.experiments
def test_a_base_is_made_and_fine_tuned(finished, tmp_path):
    """From nothing but texts to a checkpoint in the format of others, that the loss of its texts is lower for."""
    directory, _ = finished
    config = tiny_policy.sft_config(directory / "rows.jsonl", steps=6)
    config.policy.new.width, config.policy.new.mlp_width, config.policy.new.vocabulary = 16, 24, 300
    train(config, tmp_path / "base")
    base = load_base(str(tmp_path / "base" / "model"))
    assert base.decoder.config.vocabulary == 300
    assert base.tokenizer.raw.chat_template
    values = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    nll = [line["val/nll"] for line in values if "val/nll" in line]
    assert nll[-1] < nll[0]
    wrong = tiny_policy.config(directory / "rows.jsonl", tmp_path / "base")
    assert complaint(make, wrong, tmp_path / "p").endswith(f"give {tmp_path / 'base' / 'model'}")


def test_a_base_keeps_its_format_through_fine_tuning(finished, tiny_base, tmp_path):
    directory, _ = finished
    train(tiny_policy.sft_config(directory / "rows.jsonl", tiny_base, steps=2), tmp_path / "tuned")
    before, after = (read_config(d) for d in (tiny_base, tmp_path / "tuned" / "model"))
    assert before == after
    changed = [
        np.abs(a - b).max()
        for a, b in zip(
            *(leaves(load_params(d, before)) for d in (tiny_base, tmp_path / "tuned" / "model")), strict=True
        )
    ]
    assert min(changed) > 0
