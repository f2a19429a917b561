"""Supervised fine-tuning: the loss is per token, however a batch is cut or padded; a base is made, or goes on."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.config import Chat, SftConfig
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import texts_of
from fssa_jax.experiment.make import make
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
from fssa_jax.lm.scoring import table_log_probs, text_log_probs
from fssa_jax.lm.token_table import TokenTable
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


LORA = {
    "policy.lora.rank": 2,
    "policy.lora.layers": 1,
    "policy.lora.places": ("query", "down"),
    "policy.lora.alpha": 6.0,
}


@pytest.fixture(scope="module")
def tuned(finished, tiny_base, tmp_path_factory):
    """The work directory of a LoRA of the last of two layers."""
    config = tiny_policy.sft_config(finished[0] / "rows.jsonl", tiny_base, steps=8)
    config.optim.learning_rate = 0.03
    directory = tmp_path_factory.mktemp("lora") / "run"
    train(tiny_policy.change(config, LORA), directory)
    return directory


def test_a_lora_is_trained_and_is_a_base_itself(tuned, tiny_base):
    """What validation measured is what the model that is loaded says."""
    lora, plain = load_base(str(tuned / "model")), load_base(str(tiny_base))
    of_layer = [
        largest_difference(*(base.variables["params"]["layers"][i] for base in (lora, plain))) for i in range(2)
    ]
    assert of_layer[0] == 0
    assert of_layer[1] > 1e-3
    assert lora.lora.scale == 1  # 6 / 2 is in its factors
    task = Workdir.open(tuned).task
    held_out = task.tokens.rows(task.split_texts("val"))
    before, after = (
        -table_log_probs(base, held_out).sum() / (held_out.ends - held_out.starts).sum() for base in (plain, lora)
    )
    assert after < before
    lines = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    best = min(line["val/nll"] for line in lines if "val/nll" in line)
    np.testing.assert_allclose(after, best, rtol=1e-4)


def test_a_lora_above_states_that_are_kept_learns_the_same(task, tmp_path):
    config = tiny_policy.change(copy.deepcopy(task.config), LORA)
    results = []
    for keep in ("yes", "no"):
        config.policy.cache_states = keep
        mine = dataclasses.replace(task, config=copy.deepcopy(config))
        assert (few(mine).texts.states is not None) == (keep == "yes")
        results.append(one_step(mine, optax.sgd(1.0)))
    assert largest_difference(results[0][0], results[1][0]) < 1e-5
    assert largest_difference(results[0][0], mine.start(MAIN, {})["params"]) > 1e-4
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


def test_mistakes_with_a_lora_are_named(tuned, finished, tiny_base, tmp_path):
    rows = finished[0] / "rows.jsonl"

    def said(base, **settings):
        config = tiny_policy.change(tiny_policy.sft_config(rows, base), settings)
        return complaint(make, config, tmp_path / "run")

    assert "config.policy.lora.layers: only applies with" in said(tiny_base, **{"policy.lora.layers": 1})
    assert "cache_states: all weights are trained" in said(tiny_base, **{"policy.cache_states": "yes"})
    assert "a new model has nothing to adapt" in said("", **{"policy.lora.rank": 1})
    assert "lora.places: needs one place or more, each once" in said(
        tiny_base, **{"policy.lora.rank": 1, "policy.lora.places": ("query", "query")}
    )
    assert "model is a LoRA; give its base" in said(tuned / "model", **{"policy.lora.rank": 1})
    assert "config.policy.lora.layers: the base has 2 layers, not 5" in said(
        tiny_base, **LORA | {"policy.lora.layers": 5}
    )


def test_a_real_chat_model_sees_no_text_of_held_out_prompts(tmp_path):
    """The people of `chat` who are held out judge held-out prompts; its LoRA must not have read them."""
    dataset = load_dataset(Chat(train_users=40, eval_users=8), 10, 16)
    lengths = np.ones(len(dataset.texts), np.int32)
    zeros = np.zeros((len(dataset.texts), 1), np.int32)
    task = SftTask(SftConfig(data=Chat()), dataset, None, TokenTable(zeros, lengths, lengths, lengths, []))
    read = {dataset.texts[i][0] for split in ("train", "val") for i in task.split_texts(split)}
    asked = {dataset.texts[i][0] for name in ("val", "test") for i in texts_of(dataset.splits[name].table)}
    assert read
    assert not read & asked
