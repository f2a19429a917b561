"""Training of policies: the base stays, the encoder starts warm, steps resume and add up, faults are named."""

import copy
import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.styles import get_config
from fssa_jax.config.policy import PolicyModelConfig, check
from fssa_jax.data.build import load_dataset
from fssa_jax.errors import Stopped
from fssa_jax.evaluate.policy_scores import PolicyScorer
from fssa_jax.evaluate.predictor import evaluation_episodes
from fssa_jax.experiment import train_policy as training
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import trained_policy
from fssa_jax.experiment.warm_start import load_people, warm_encoder
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base, reference_log_probs, stored_reference
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
from fssa_jax.ops.padding import best_plan
from fssa_jax.people.side_by_side import write_for
from fssa_jax.report.policy import evaluate_workdir
from fssa_jax.tasks.policy import batch_key, draw_batch, draw_texts, make_policy_step, make_sft_step, text_log_probs
from fssa_jax.train.loop import StopSignal
from fssa_jax.train.step import make_optimizer, many_steps
from tests import tiny, tiny_policy
from tests.mistakes import complaint
from tests.tiny_policy import change


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def largest_difference(a, b) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return PolicyWorkdir.open(steered)


def test_everything_that_is_needed_later_is_there(steered, made):
    for name in ("config.json", "run.json", "reference.npz", "metrics.jsonl", "data/tokens.npz"):
        assert (steered / name).is_file(), name
    lines = [json.loads(line) for line in (steered / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"rewards/chosen", "rewards/rejected", "rewards/margin", "rewards/accuracy", "logps/chosen", "sft"} <= names
    fields = ("accuracy", "margin", "chosen", "rejected")
    expected = {f"val/rewards/{field}_k{k}" for field in fields for k in (0, 1, 3)} | {"val/nll", "val/logps/chosen_k3"}
    assert expected <= names
    last = next(line for line in reversed(lines) if "val/nll" in line)
    margin = last["val/rewards/chosen_k3"] - last["val/rewards/rejected_k3"]
    np.testing.assert_allclose(margin, last["val/rewards/margin_k3"], atol=1e-5)
    assert made.roles == ("population", "main", "oracle")
    assert all(trained_policy(made, role) for role in made.roles)


def test_the_same_command_again_does_nothing(steered, finished, tiny_base):
    directory, _ = finished
    before = (steered / "metrics.jsonl").read_bytes()
    training.train(tiny_policy.config(directory / "rows.jsonl", tiny_base, directory / "run"), steered)
    assert (steered / "metrics.jsonl").read_bytes() == before


def test_the_encoder_starts_warm_and_stays_where_it_is_frozen(made):
    trained = trained_policy(made)
    reward = warm_encoder(made.config)
    assert_same(trained.variables["params"]["reward"], reward.variables["params"])


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_the_loss_of_a_step_reaches_the_encoder_through_the_adapters(made, kind):
    """Fails where z stops reaching the policy: nothing else of the loss depends on what the encoder says."""
    config = copy.deepcopy(made.config)
    config.encoder.frozen, config.optim.warmup_steps, config.optim.weight_decay = False, 0, 0.0
    config.policy.adapter.kind, config.policy.adapter.places = kind, ("query", "gate")
    work = dataclasses.replace(made, config=config)
    conditioner, optimizer, state = training.make_state(work, "main", warm=True)
    state.params["hyper"] = jax.tree.map(lambda x: x + 0.1, state.params["hyper"])  # not the identity
    before = jax.device_get(state.params["reward"])
    after, _ = jax.jit(make_policy_step(conditioner, work.base.decoder, optimizer, config))(state, work.data("train"))
    assert largest_difference(after.params["reward"], before) > 0


def one_step(made, settings, moved=True):
    """Metrics of one batch, the gradient of its loss, and what the loss is made of, for some settings."""
    config = change(copy.deepcopy(made.config), settings)
    work = dataclasses.replace(made, config=config)
    conditioner, _, state = training.make_state(work, "main", warm=True)
    if moved:
        state.params["hyper"] = jax.tree.map(lambda x: x + 0.1, state.params["hyper"])  # not the identity
    # One step of plain descent: the change of the parameters is the gradient.
    optimizer = optax.sgd(1.0)
    state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
    data = made.data("train")
    after, metrics = jax.jit(make_policy_step(conditioner, made.base.decoder, optimizer, config))(state, data)
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    sizes = (config.train.users, config.train.max_context, config.train.targets)
    episode, keys = draw_batch(batch_key(config.seed, jnp.int32(0)), data, *sizes)
    variables = {"params": state.params, **({"batch_stats": state.batch_stats} if state.batch_stats else {})}
    q = conditioner.apply(variables, episode, data.features, method="latent_of")
    z = q.mean + q.scale * jax.vmap(lambda key: jax.random.normal(key, q.mean.shape[1:]))(keys)
    return metrics, gradient, (conditioner, variables, episode, data, z)


def margins(conditioner, variables, episode, data, z, decoder, beta, a_token=False):
    """(users, targets) β-scaled margins of a batch, written out."""
    adapters = conditioner.apply(variables, z, method="adapt")
    ids = jnp.stack([episode.targets.chosen, episode.targets.rejected], -1)
    flat = ids.reshape(-1)
    ratio = text_log_probs(decoder, data.base, data, flat, adapters) - data.reference[flat]
    if a_token:
        ratio = ratio / (data.ends[flat] - data.starts[flat]).astype(jnp.float32)
    ratio = np.asarray(ratio).reshape(ids.shape)
    return beta * (ratio[..., 0] - ratio[..., 1])


PLAIN = {"encoder.frozen": True, "objective.distil": 0.0, "objective.sft_weight": 0.0, "objective.kl_weight": 0.0}


def test_the_loss_of_the_reward_model_counts_as_much_as_it_is_told(made):
    free = {**PLAIN, "encoder.frozen": False}
    plain, alone, _ = one_step(made, free)
    beside, both, _ = one_step(made, {**free, "encoder.auxiliary_weight": 0.5})
    np.testing.assert_allclose(beside["loss"], plain["loss"] + 0.5 * beside["reward_nll"], rtol=1e-5)
    assert largest_difference(both["reward"], alone["reward"]) > 1e-4
    assert largest_difference(both["hyper"], alone["hyper"]) < 1e-6


def test_labels_of_the_reward_model_are_its_probabilities_of_each_choice(made):
    metrics, _, parts = one_step(made, {**PLAIN, "objective.distil": 0.75})
    margin = margins(*parts, made.base.decoder, made.config.objective.beta)
    conditioner, variables, episode, data, z = parts
    reward = conditioner.reward
    likelihood = reward.apply(
        {"params": variables["params"]["reward"]}, episode.targets, z[None], data.features, method="log_likelihood"
    )[0]
    p, mask = np.exp(np.asarray(likelihood)), np.asarray(episode.targets.mask)
    assert p.std() > 1e-3
    right, wrong = np.log1p(np.exp(-margin)), np.log1p(np.exp(margin))
    losses = 0.25 * right + 0.75 * (p * right + (1 - p) * wrong)
    np.testing.assert_allclose(metrics["loss"], ((losses * mask).sum(1) / mask.sum(1)).mean(), rtol=1e-4)


@pytest.mark.parametrize("worth", ["advantage", "reward"])
def test_what_is_imitated_is_what_the_reward_model_likes(made, worth):
    """−Σ w log π(y | x, z) of all responses of a person's targets, a token of a typical text."""
    settings = {"objective.sft_weight": 2.0, "objective.sft": worth, "objective.beta": 0.3}
    metrics, _, parts = one_step(made, {**PLAIN, **settings})
    conditioner, variables, episode, data, z = parts
    adapters = conditioner.apply(variables, z, method="adapt")
    ids = np.stack([episode.targets.chosen, episode.targets.rejected], -1)
    log_p = text_log_probs(made.base.decoder, data.base, data, jnp.asarray(ids.reshape(-1)), adapters)
    log_p = np.asarray(log_p).reshape(ids.shape)
    mask = np.asarray(episode.targets.mask)
    rewards = np.asarray(
        conditioner.apply(
            variables,
            jnp.asarray(ids.reshape(len(ids), -1)),
            z[None],
            data.features,
            method=lambda c, *a: c.reward_model.rewards(*a),
        )
    )[0, ..., 0]
    rewards = rewards.reshape(ids.shape)
    worths = rewards - rewards[..., ::-1] if worth == "advantage" else rewards
    weight = np.exp(worths / 0.3) * mask[..., None]
    weight /= weight.sum((1, 2), keepdims=True)
    assert weight.max() > 1.2 * weight[weight > 0].min()
    lengths = np.asarray(data.ends - data.starts)
    expected = -(weight * log_p).sum((1, 2)).mean() / lengths[lengths > 0].mean()
    np.testing.assert_allclose(metrics["sft"], expected, rtol=1e-4)
    margin = margins(*parts, made.base.decoder, 0.3)
    losses = np.log1p(np.exp(-margin))
    choices = ((losses * mask).sum(1) / mask.sum(1)).mean()
    np.testing.assert_allclose(metrics["loss"], choices + 2 * expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "smoothing"), [("ipo", 0.0), ("hinge", 0.0), ("sigmoid", 0.2), ("robust", 0.2)])
def test_the_loss_of_a_step_is_the_one_that_is_asked_for(made, kind, smoothing):
    """Written out from the margins, by the formulae of `losses.dpo_loss`."""
    settings = {**PLAIN, "objective.kind": kind, "objective.label_smoothing": smoothing, "objective.beta": 0.4}
    metrics, _, parts = one_step(made, settings)
    margin, mask = margins(*parts, made.base.decoder, 0.4), np.asarray(parts[2].targets.mask)
    right, wrong = np.log1p(np.exp(-margin)), np.log1p(np.exp(margin))
    losses = {
        "ipo": (margin / 0.4 - 1 / (2 * 0.4)) ** 2,
        "hinge": np.maximum(1 - margin, 0),
        "sigmoid": (1 - smoothing) * right + smoothing * wrong,
        "robust": ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing),
    }[kind]
    assert np.abs(margin).max() > 1e-3
    np.testing.assert_allclose(metrics["loss"], ((losses * mask).sum(1) / mask.sum(1)).mean(), rtol=1e-3)


def test_a_policy_for_everybody_is_trained_and_says_the_same_whatever_was_chosen(finished, tiny_base, tmp_path):
    config = tiny_policy.config(finished[0] / "rows.jsonl", tiny_base)
    config.policy.adapter.latent, config.evaluate.in_context_users = "none", 0
    training.train(config, tmp_path / "run")
    report = evaluate_workdir(tmp_path / "run")
    assert len({cell["mean"] for cell in report["accuracy"].values()}) == 1
    assert report["population"] == report["accuracy"]
    assert "latent" not in report
    assert not report.get("control")
    assert list(report["generation"]["policy"]) == ["3"]
    assert "blend" not in report["generation"]
    assert np.isfinite(report["generation"]["policy"]["3"]["kl"])


def test_a_length_normalised_loss_compares_tokens(made):
    metrics, _, parts = one_step(made, {**PLAIN, "objective.length_normalised": True})
    margin = margins(*parts, made.base.decoder, made.config.objective.beta, a_token=True)
    mask = np.asarray(parts[2].targets.mask)
    np.testing.assert_allclose(metrics["rewards/margin"], ((margin * mask).sum(1) / mask.sum(1)).mean(), rtol=1e-3)


def gaussian(made, **objective):
    """A policy with a latent that has a width, from chance, and its metrics after one step."""
    config = copy.deepcopy(made.config)
    config.encoder.init_from, config.encoder.frozen, config.model.encoder.gaussian = "", False, True
    config.objective = dataclasses.replace(config.objective, **objective)
    check(config)
    conditioner, optimizer, state = training.make_state(dataclasses.replace(made, config=config), "main")
    step = jax.jit(make_policy_step(conditioner, made.base.decoder, optimizer, config))
    return step(state, made.data("train"))[1]


def test_the_divergence_of_a_latent_is_that_of_the_objective_and_weighs_what_it_is_told(made):
    found = {name: gaussian(made, latent=name, kl_weight=0.5, sft_weight=0.0) for name in ("vpl", "elbo", "published")}
    assert len({round(float(metrics["kl"]), 5) for metrics in found.values()}) == 3
    for metrics in found.values():
        # At the first step the policy is the reference: its part of the loss is log 2.
        np.testing.assert_allclose(metrics["loss"], np.log(2) + 0.5 * metrics["kl"], atol=1e-4)


def test_at_the_first_step_the_policy_is_the_reference(made):
    """The adapters are the identity: implied rewards are 0, whatever the context, and the loss is log 2."""
    config = copy.deepcopy(made.config)
    config.objective.sft_weight = 0.0
    conditioner, optimizer, state = training.make_state(made, "main", warm=True)
    _, metrics = jax.jit(make_policy_step(conditioner, made.base.decoder, optimizer, config))(state, made.data("train"))
    np.testing.assert_allclose(metrics["rewards/margin"], 0, atol=1e-4)
    np.testing.assert_allclose(metrics["loss"], np.log(2), atol=1e-4)


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_a_base_in_bfloat16_that_is_computed_again_is_steered_by_weights_in_float32(made, kind):
    """At first the policy is the reference, as the base in bfloat16 says it; the gradient is that in float32 but for
    rounding, and what is trained stays in float32."""
    places = ("residual", "gate") if kind == "film" else ("query", "gate")
    settings = {"policy.adapter.kind": kind, "policy.adapter.places": places, "objective.sft_weight": 0.0}
    gradients = []
    for dtype, remat in (("float32", "none"), ("bfloat16", "full")):
        settings |= {"policy.dtype": dtype, "policy.remat": remat}
        config = change(copy.deepcopy(made.config), settings)
        base = load_base(config.policy)
        reference = reference_log_probs(base, made.tokens)
        work = dataclasses.replace(made, config=config, base=base, reference=reference)
        conditioner, _, state = training.make_state(work, "main", warm=True)
        optimizer = optax.sgd(1.0)
        state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
        step = jax.jit(make_policy_step(conditioner, base.decoder, optimizer, config))
        after, metrics = step(state, work.data("train"))
        np.testing.assert_allclose(metrics["rewards/margin"], 0, atol=1e-2 if dtype == "bfloat16" else 1e-4)
        np.testing.assert_allclose(metrics["loss"], np.log(2), atol=1e-2)
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
        moved = jax.tree.map(jnp.subtract, state.params["hyper"], after.params["hyper"])
        gradients.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)]))
    exact, rounded = gradients
    assert np.linalg.norm(exact) > 1e-4
    assert exact @ rounded > 0.98 * np.linalg.norm(exact) * np.linalg.norm(rounded)
    assert np.linalg.norm(rounded) == pytest.approx(np.linalg.norm(exact), rel=0.1)


def test_what_is_to_be_written_must_fit_into_the_base(finished, tiny_base, tmp_path):
    people, _ = finished
    config = tiny_policy.config(people / "rows.jsonl", tiny_base, people / "run")
    config.evaluate.generate.max_new = 256
    message = complaint(PolicyWorkdir.make, config, tmp_path / "run")
    assert message.startswith("config.evaluate.generate.max_new: 256 tokens and a prompt do not fit into the 256 ")
    config.evaluate.generate.people = 0  # nothing is written
    PolicyWorkdir.make(config, tmp_path / "run")


def test_parts_of_a_batch_add_up(made):
    conditioner, _, state = training.make_state(made, "main", warm=True)
    optimizer = make_optimizer(made.config.optim, 4)
    state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
    state.params["hyper"] = jax.tree.map(lambda x: x + 0.1, state.params["hyper"])
    results = []
    for parts in (1, 2):
        config = change(copy.deepcopy(made.config), {"objective.sft": "reward", "train.accumulate": parts})
        step = jax.jit(make_policy_step(conditioner, made.base.decoder, optimizer, config))
        results.append(step(state, made.data("train")))
    for a, b in zip(leaves(results[0]), leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_parts_of_texts_add_up_too(made):
    """The loss of a base is a token's, over the whole batch, however it is cut."""
    params = made.base.variables["params"]
    optimizer = make_optimizer(made.config.optim, 4)
    data = dataclasses.replace(made.data("train"), rows=jnp.arange(40))
    results = []
    for parts in (1, 2):
        config = copy.deepcopy(made.config)
        config.train.accumulate = parts
        state = training.new_state(params, {}, optimizer, average=False)
        state, metrics = jax.jit(make_sft_step(made.base.decoder, optimizer, config))(state, data)
        results.append((state.params, metrics["loss"]))
    assert largest_difference(*(r[0] for r in results)) < 1e-5
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
    ids = jax.random.randint(batch_key(0, jnp.int32(0)), (made.config.train.texts,), 0, 40)
    log_p = text_log_probs(made.base.decoder, made.base.variables, data, ids)
    expected = -np.asarray(log_p).sum() / np.asarray(data.ends[ids] - data.starts[ids]).sum()
    np.testing.assert_allclose(results[0][1], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_texts_of_like_length_are_padded_together_and_nothing_else_changes(made, kind):
    """However a batch is padded, every response has its own person's adapter, and the gradient is the same."""
    config = change(copy.deepcopy(made.config), {"policy.adapter.kind": kind, "policy.adapter.shared_rank": 2})
    config.policy.adapter.places = ("query", "gate")
    work = dataclasses.replace(made, config=config)
    conditioner, _, state = training.make_state(work, "main", warm=True)
    state.params["hyper"] = jax.tree.map(lambda x: x + 0.1, state.params["hyper"])
    optimizer = optax.sgd(1.0)
    state = dataclasses.replace(state, opt_state=optimizer.init(state.params))
    data = made.data("train")
    sizes = (config.train.users, config.train.max_context, config.train.targets)
    episode, _ = draw_batch(batch_key(config.seed, jnp.int32(0)), data, *sizes)
    ids = jnp.stack([episode.targets.chosen, episode.targets.rejected], -1).reshape(-1)
    plan = best_plan(np.sort(np.asarray(data.ends)[ids])[::-1], 3, data.tokens.shape[1])
    assert len(plan) > 1
    results = [
        jax.jit(make_policy_step(conditioner, made.base.decoder, optimizer, config, plan=p))(state, data)
        for p in (None, plan)
    ]
    moved = largest_difference(results[0][0].params["hyper"], state.params["hyper"])
    assert moved > 1e-3
    assert largest_difference(results[0][0].params, results[1][0].params) < 1e-3 * moved
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_by_plans_is_the_run_without_any(made, parts):
    """Calls whose texts differ in length take different plans, of several groups; the parameters do not notice."""
    settings = {"train.accumulate": parts, "train.length_groups": 3, "train.steps_per_call": 1, "train.steps": 6}
    config = change(copy.deepcopy(made.config), settings)
    conditioner, _, start = training.make_state(made, "main", warm=True)
    optimizer = optax.sgd(0.1)
    data = made.data("train")
    # Responses of every length: the shorter ones are the beginnings of what they were.
    lengths = np.asarray(data.ends - data.starts) * np.random.default_rng(0).uniform(0.05, 1, len(data.ends)) ** 3
    data = dataclasses.replace(data, ends=data.starts + jnp.asarray(np.ceil(lengths), jnp.int32))
    ids = training.texts_of_batch(config, conditioner)
    step = partial(make_policy_step, conditioner, made.base.decoder, optimizer, config)
    used = []

    def watched(plan):
        used.append(plan)
        return step(plan=plan)

    state = dataclasses.replace(start, opt_state=optimizer.init(start.params))
    state.params["hyper"] = jax.tree.map(lambda x: x + 0.1, state.params["hyper"])
    plain = jax.tree.map(jnp.copy, state)
    advance = training.planned(watched, ids, data, config.train, 6, "none")
    once = jax.jit(step())
    for number in range(6):
        state, metrics = advance(state, number, 1)
        plain, expected = once(plain, data)
        np.testing.assert_allclose(metrics["loss"][0], expected["loss"], rtol=1e-5)
    for a, b in zip(leaves(state.params), leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(set(used)) > 1
    assert max(len(plan) for plan in used) > 1
    rows = config.train.users * config.train.targets * 2 // parts
    assert all(sum(number for number, _ in plan) == rows for plan in used)


def test_texts_of_a_base_are_padded_by_plans_too(made):
    params, optimizer = made.base.variables["params"], optax.sgd(1.0)
    data = dataclasses.replace(made.data("train"), rows=jnp.arange(40))
    config = change(copy.deepcopy(made.config), {"train.texts": 16})
    ids = draw_texts(config, jnp.int32(0), data)
    plan = best_plan(np.sort(np.asarray(data.ends)[ids])[::-1], 3, data.tokens.shape[1])
    assert len(plan) > 1
    results = []
    for p in (None, plan):
        state = training.new_state(params, {}, optimizer, average=False)
        results.append(jax.jit(make_sft_step(made.base.decoder, optimizer, config, plan=p))(state, data))
    assert largest_difference(results[0][0].params, params) > 1e-4
    assert largest_difference(results[0][0].params, results[1][0].params) < 1e-5
    np.testing.assert_allclose(results[0][1]["loss"], results[1][1]["loss"], rtol=1e-5)


def test_stopped_and_resumed_is_the_undisturbed_run_bit_for_bit(steered, made, tmp_path):
    again = PolicyWorkdir.make(made.config, tmp_path / "again")
    stop = StopSignal()
    stop.received = True
    with pytest.raises(Stopped, match="stopped at step 2 of 4"):
        training.fit_policy(again, "main", stop)
    stop.received = False
    training.fit_policy(again, "main", stop)
    assert_same(trained_policy(again).variables, trained_policy(made).variables)


def test_a_trained_encoder_and_the_noise_of_its_latent_resume_bit_for_bit_too(made, tmp_path):
    config = change(
        copy.deepcopy(made.config),
        {
            "encoder.init_from": "",
            "encoder.frozen": False,
            "model.encoder.gaussian": True,
            "objective.kl_weight": 0.1,
            "policy.adapter.kind": "lora",
            "policy.adapter.places": ("query",),
            "optim.average_decay": 0.9,
        },
    )
    stop, found = StopSignal(), []
    made = PolicyWorkdir.make(config, tmp_path / "whole")
    for name in ("whole", "stopped"):
        work = dataclasses.replace(made, path=tmp_path / name)
        stop.received = name == "stopped"
        if stop.received:
            with pytest.raises(Stopped, match="stopped at step 2 of 4"):
                training.fit_policy(work, "main", stop)
        stop.received = False
        training.fit_policy(work, "main", stop)
        found.append(trained_policy(work).variables)
    assert_same(*found)


def test_a_policy_learns_to_follow_choices_and_nothing_else(made):
    """People who like long answers and people who like short ones, whom training has not met."""
    settings = {"encoder.frozen": False, "objective.sft_weight": 0.1, "train.users": 16, "train.steps": 60}
    config = change(copy.deepcopy(made.config), settings)
    config.policy.adapter.places = ("query", "value", "gate", "residual")
    work = dataclasses.replace(made, config=config)
    conditioner, optimizer, state = training.make_state(work, "main", warm=True)
    steps = many_steps(make_policy_step(conditioner, made.base.decoder, optimizer, config), 60)
    state, _ = jax.jit(steps)(state, made.data("train"))
    table = jax.tree.map(jnp.asarray, made.dataset.splits["test"].table)
    episodes = evaluation_episodes(0, 0, table, jnp.arange(table.group.shape[0]), max_context=3)
    group = np.asarray(episodes.group)
    assert {*group.tolist()} == {0, 1}
    # Everybody with the context of somebody who wants the opposite.
    other = np.array([np.flatnonzero(group != g)[0] for g in group])
    swapped = dataclasses.replace(episodes, context=jax.tree.map(lambda x: x[other], episodes.context))
    scorer = PolicyScorer(conditioner, made.base.decoder, made.data("test"), config.objective)
    mask = np.asarray(episodes.targets.mask)
    right = []
    for e in (episodes, swapped):
        log_p = np.asarray(scorer.predict({"params": state.params}, e, (3,))[0])[0].reshape(mask.shape)
        right.append((log_p > np.log(0.5))[mask].mean())
    assert right[0] > 0.8
    assert right[1] < 0.2


def test_a_loss_that_is_not_finite_names_the_step_and_the_people(made, tmp_path):
    work = PolicyWorkdir.make(made.config, tmp_path / "run")
    spoilt = dataclasses.replace(work.base, variables=jax.tree.map(lambda x: x * jnp.nan, work.base.variables))
    work = dataclasses.replace(work, base=spoilt)
    message = complaint(training.fit_policy, work, "main", StopSignal())
    assert message.startswith("main: the loss is nan at step 1 (people u")
    assert "there is no checkpoint yet" in message


def test_a_loss_that_one_text_spoils_names_the_step_that_reads_it_and_its_people(made, tmp_path):
    """Not the first step of a call: a text whose reference is no number, which the first batch does not read."""
    work = PolicyWorkdir.make(made.config, tmp_path / "run")
    conditioner, _, _ = training.make_state(work, "main")
    data, batch = work.data("train"), training.texts_of_batch(work.config, conditioner)
    first, second = (set(np.asarray(batch(jnp.int32(step), data)).ravel().tolist()) for step in (0, 1))
    reference = work.reference.copy()
    reference[sorted(second - first)] = np.nan
    message = complaint(training.fit_policy, dataclasses.replace(work, reference=reference), "main", StopSignal())
    assert message.startswith("main: the loss is nan at step 2 (people u")
    everybody = work.dataset.splits["train"].users
    people = {everybody[int(u)] for u in np.asarray(training._batch(work.config, conditioner, jnp.int32(1), data).user)}
    assert set(message.split("(people ")[1].split(")")[0].split(", ")) == people


def test_a_base_is_made_and_fine_tuned(finished, tmp_path):
    """From nothing but texts to a checkpoint in the format of others, that the loss of its texts is lower for."""
    directory, _ = finished
    config = tiny_policy.config(directory / "rows.jsonl", "")
    config.objective.kind, config.train.steps = "sft", 6
    config.policy.new.width, config.policy.new.mlp_width, config.policy.new.vocabulary = 16, 24, 300
    training.train(config, tmp_path / "base")
    base = load_base(PolicyModelConfig(base=str(tmp_path / "base" / "model")))
    assert base.decoder.config.vocabulary == 300
    assert base.tokenizer.chat_template
    values = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    nll = [line["val/nll"] for line in values if "val/nll" in line]
    assert nll[-1] < nll[0]
    wrong = tiny_policy.config(directory / "rows.jsonl", tmp_path / "base")
    assert complaint(PolicyWorkdir.make, wrong, tmp_path / "p").endswith(f"give {tmp_path / 'base' / 'model'}")


def test_a_base_keeps_its_format_through_fine_tuning(finished, tiny_base, tmp_path):
    directory, _ = finished
    config = tiny_policy.config(directory / "rows.jsonl", tiny_base, steps=2)
    config.objective.kind = "sft"
    training.train(config, tmp_path / "tuned")
    before, after = (read_config(d) for d in (tiny_base, tmp_path / "tuned" / "model"))
    assert before == after
    changed = [
        np.abs(a - b).max()
        for a, b in zip(
            *(leaves(load_params(d, before)) for d in (tiny_base, tmp_path / "tuned" / "model")), strict=True
        )
    ]
    assert min(changed) > 0


MISTAKES = {
    "no base": ({"policy.base": ""}, "config.policy.base: give a checkpoint"),
    "frozen from chance": ({"encoder.init_from": ""}, "config.encoder.init_from: name the work directory"),
    "place": ({"policy.adapter.places": ("q_proj",)}, "config.policy.adapter.places: must be some of query"),
    "low rank on the residual": ({"policy.adapter.kind": "lora"}, "only film adapts the residual stream"),
    "parts": ({"train.accumulate": 3}, "config.train.accumulate: 4 users"),
    "smoothing": ({"objective.label_smoothing": 0.1, "objective.kind": "ipo"}, "config.objective.label_smoothing"),
    "distil": ({"objective.distil": 2.0}, "config.objective.distil"),
    "labels that move": ({"objective.distil": 0.5, "encoder.frozen": False}, "give config.encoder.frozen=True"),
    "samples": ({"evaluate.samples": 4}, "config.evaluate.samples"),
    "roles of a point": ({"objective.latent": "elbo"}, "config.objective.latent: counts with a Gaussian latent"),
    "word": ({"objective.kind": "kto"}, "config.objective.kind: must be one of sigmoid"),
    "no reader": ({"model.kind": "btl"}, "config.model.kind: choices are read by np_btl"),
    "place twice": ({"policy.adapter.places": ("query", "query")}, "each once"),
    "rank": ({"policy.adapter.shared_rank": -1}, "config.policy.adapter.shared_rank: must not be negative"),
    "weight": ({"objective.sft_weight": -1.0}, "config.objective.sft_weight: must not be negative"),
    "width": ({"policy.adapter.width": 0}, "config.policy.adapter.width: must be positive"),
    "groups": ({"policy.new.groups": 3}, "config.policy.new.groups: 4 heads"),
    "head": ({"policy.new.width": 68}, "config.policy.new.width: must be a multiple of twice the 4 heads"),
    "vocabulary": ({"policy.new.vocabulary": 100}, "config.policy.new.vocabulary: a tokenizer of bytes needs 261"),
    "roles for everybody": (
        {"policy.adapter.latent": "none", "encoder.init_from": "", "encoder.frozen": False, "objective.latent": "elbo"},
        "config.objective.latent: a policy for everybody",
    ),
    "imitation of nothing": (
        {"objective.sft": "reward", "objective.sft_weight": 0.0},
        "whose config.objective.sft_weight is 0",
    ),
    "imitation of an encoder that moves": (
        {"objective.sft": "advantage", "encoder.frozen": False},
        "config.objective.sft: responses are weighted by",
    ),
    "imitation by everybody": (
        {
            "policy.adapter.latent": "none",
            "encoder.init_from": "",
            "encoder.frozen": False,
            "objective.sft": "advantage",
        },
        "config.objective.sft: a policy for everybody",
    ),
    "average": ({"optim.average_decay": 2.0}, "config.optim.average_decay: must be in [0, 1), got 2.0"),
    "no context": ({"train.max_context": -1}, "config.train.max_context: must be positive, got -1"),
    "hidden of low rank": (
        {"policy.adapter.kind": "lora", "policy.adapter.places": ("query",), "policy.adapter.hidden": 4},
        "config.policy.adapter.hidden: counts for kind=film alone",
    ),
    "core of film": ({"policy.adapter.core": "full"}, "config.policy.adapter.core: is of kind=lora_core alone"),
    "scale of nothing": (
        {"policy.adapter.shared_alpha": 4.0},
        "config.policy.adapter.shared_alpha: counts with a LoRA of config.policy.adapter.shared_rank > 0 alone",
    ),
    "places of nothing": (
        {"policy.adapter.shared_places": ("query",)},
        "config.policy.adapter.shared_places: counts with a LoRA of config.policy.adapter.shared_rank > 0 alone",
    ),
    "rank of film": ({"policy.adapter.rank": 4}, "config.policy.adapter.rank: counts for kind=lora_core and kind=lora"),
    "width of film": ({"policy.adapter.width": 32}, "config.policy.adapter.width: counts for kind=lora alone"),
    "unread by a policy": ({"train.unread": "topics"}, "config.train.unread: is of bases that are made of styles"),
    "no number": ({"evaluate.generate.temperature": float("nan")}, "config.evaluate.generate: needs temperature"),
    "labels of texts": ({"objective.kind": "sft"}, "config.encoder.init_from: a base is made of texts"),
    "imitation of texts": (
        {"objective.kind": "sft", "objective.sft": "advantage"},
        "config.objective.sft: a base is made of texts",
    ),
    "tokens of texts": (
        {
            "objective.kind": "sft",
            "encoder.init_from": "",
            "encoder.frozen": False,
            "objective.length_normalised": True,
        },
        "config.objective.length_normalised: a base is made of texts",
    ),
    "attention's dropout from chance": (
        {"encoder.init_from": "", "encoder.frozen": False, "model.encoder.dropout": 0.1},
        "config.model.encoder.dropout: has no part in the training of a policy",
    ),
    "dropout from chance": (
        {"encoder.init_from": "", "encoder.frozen": False, "model.text_dropout": 0.1},
        "config.model.text_dropout: has no part in the training of a policy",
    ),
    "length groups": ({"train.length_groups": 9}, "config.train.length_groups: texts are cut at eighths"),
    "for everybody": ({"policy.adapter.latent": "none"}, "config.encoder.init_from: a policy for everybody"),
}


def test_a_base_is_made_whatever_its_adapters_would_be():
    settings = {"policy.adapter.kind": "lora"}  # low rank on the residual stream: a mistake of a policy
    assert "only film adapts" in complaint(check, change(tiny_policy.config("rows.jsonl", "base"), settings))
    base = change(tiny_policy.config("rows.jsonl", ""), settings | {"objective.kind": "sft"})
    assert check(base) is None


@pytest.mark.parametrize(("settings", "words"), MISTAKES.values(), ids=MISTAKES)
def test_settings_that_mean_nothing_are_named(settings, words):
    config = change(tiny_policy.config("rows.jsonl", "base", "reward"), settings)
    assert words in complaint(check, config)


def test_a_base_may_move_and_is_known_by_its_contents(steered, made, tmp_path):
    """`--base`, and for training `config.policy.base`, name it anew; only where the old place is gone."""
    config = copy.deepcopy(made.config)
    here, gone = tmp_path / "here", str(tmp_path / "gone")
    shutil.copytree(config.policy.base, here)
    assert "was trained with config.policy.base" in complaint(
        PolicyWorkdir.make, change(copy.deepcopy(config), {"policy.base": str(here)}), steered
    )
    moved = tmp_path / "moved"
    shutil.copytree(steered, moved)
    text = (moved / "config.json").read_text()
    for name in (config.policy.base, config.encoder.init_from):
        text = text.replace(json.dumps(name), json.dumps(gone))
    (moved / "config.json").write_text(text)
    assert f"its language model is not in {gone}" in complaint(PolicyWorkdir.open, moved)
    assert PolicyWorkdir.open(moved, str(here)).base.fingerprint == made.base.fingerprint
    # Training goes on with it, also where a policy has not begun and starts from the encoder.
    shutil.rmtree(moved / "checkpoints")
    training.train(change(config, {"policy.base": str(here)}), moved)
    assert_same(trained_policy(PolicyWorkdir.open(moved, str(here))).variables, trained_policy(made).variables)
    run = json.loads((moved / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps(run | {"encoder": "of another"}))
    assert "is another reward model than it was started with" in complaint(PolicyWorkdir.make, config, moved)
    choices = str(tiny.write_rows(tmp_path / "mine.jsonl", tiny.rows(users=1)[:2]))
    assert "its language model is not in" in complaint(lambda: write_for(moved, ["question 0"], choices=choices))
    [[_, after]] = write_for(moved, ["question 0"], choices=choices, base=str(here))
    assert after.name == "after 2 choices"
    file = moved / "config.json"  # nothing is written for anybody
    file.write_text(
        file.read_text().replace('"people": 4', '"people": 0').replace('context_users": 2', 'context_users": 0')
    )
    report = evaluate_workdir(moved, ks=(0,), base=str(here))
    assert report["k"] == [0]
    assert "generation" not in report
    other = tiny_policy.base(tmp_path / "other")
    (other / "model.safetensors").write_bytes(_changed(other / "model.safetensors"))
    assert "adapters are of another language model" in complaint(PolicyWorkdir.open, moved, str(other))


def test_what_does_not_belong_together_is_named(steered, finished, made, tmp_path):
    directory, _ = finished
    config = copy.deepcopy(made.config)
    reference = steered / "reference.npz"
    for spoilt in (b"", reference.read_bytes()[:100], reference.read_bytes()[:-200]):
        (tmp_path / "reference.npz").write_bytes(spoilt)
        message = complaint(stored_reference, made.base, made.tokens, tmp_path / "reference.npz")
        assert "reference.npz: damaged" in message
        assert "remove it to have it made again" in message
    # The reference of another base, and of other texts.
    other = tiny_policy.base(tmp_path / "other")
    (other / "model.safetensors").write_bytes(_changed(other / "model.safetensors"))
    moved = change(copy.deepcopy(config), {"policy.base": str(other)})
    assert "was trained with config.policy.base" in complaint(PolicyWorkdir.make, moved, steered)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(steered, spoilt)
    before = (spoilt / "config.json").read_text()
    (spoilt / "config.json").write_text(before.replace(json.dumps(config.policy.base), json.dumps(str(other))))
    assert "adapters are of another language model" in complaint(PolicyWorkdir.open, spoilt)
    run = json.loads((spoilt / "run.json").read_text())
    (spoilt / "run.json").write_text(json.dumps({name: value for name, value in run.items() if name != "base"}))
    assert "log-probabilities of another language model" in complaint(PolicyWorkdir.open, spoilt)
    with np.load(steered / "reference.npz") as arrays:
        stamp = json.loads(str(arrays["stamp"])) | {"texts": "of other texts"}
        np.savez(spoilt / "reference.npz", stamp=json.dumps(stamp), log_probs=arrays["log_probs"])
    (spoilt / "config.json").write_text(before)
    assert "other texts or another tokenizer" in complaint(PolicyWorkdir.open, spoilt)
    for start, words in ((directory / "absent", "no config.json"), (steered, "the work directory of a policy")):
        wrong = change(copy.deepcopy(config), {"encoder.init_from": str(start)})
        assert words in complaint(PolicyWorkdir.make, wrong, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    wrong = change(copy.deepcopy(config), {"evaluate.k": (0, 99)})
    assert "config.evaluate.k: 99 is larger than any context" in complaint(PolicyWorkdir.make, wrong, tmp_path / "k")
    wrong = change(copy.deepcopy(config), {"policy.max_length": 1000})
    assert "config.policy.max_length: 1000 is more than the 256 positions" in complaint(
        PolicyWorkdir.make, wrong, tmp_path / "n"
    )


def _changed(file):
    from safetensors.numpy import load, save

    tensors = load(file.read_bytes())
    return save({name: tensor + 1 for name, tensor in tensors.items()})


def test_the_data_are_those_of_the_encoder_and_other_settings_are_refused(steered, made, finished, tmp_path):
    directory, _ = finished
    reward = Workdir.open(directory / "run")
    assert made.dataset.splits["test"].users == reward.dataset.splits["test"].users
    assert made.config.data == reward.config.data
    wrong = change(copy.deepcopy(made.config), {"data.groups": ("long",)})
    message = complaint(PolicyWorkdir.make, wrong, tmp_path / "run")
    assert message.startswith("config.data.groups: ")
    assert "was trained with ()" in message
    wrong = change(copy.deepcopy(made.config), {"model.encoder.latent_dim": 5})
    message = complaint(PolicyWorkdir.make, wrong, tmp_path / "run")
    assert message.startswith("config.model.encoder.latent_dim: ")
    assert "was trained with 8, not 5" in message


def test_who_is_held_out_must_not_have_trained_the_encoder(finished, made, tmp_path):
    directory, _ = finished
    rows = tmp_path / "others.jsonl"
    rows.write_text((directory / "rows.jsonl").read_text())
    config = change(copy.deepcopy(made.config), {"data.path": str(rows), "data.split_seed": 3, "data.features": "auto"})
    assert "people who are held out here" in complaint(PolicyWorkdir.make, config, tmp_path / "run")


def test_whom_the_encoder_has_met_in_other_rows_is_nobody_new(finished, made, tmp_path, caplog):
    directory, _ = finished
    mine = [{**row, "user_id": f"mine {row['user_id']}"} for row in tiny.rows(seed=3)]
    config = change(
        copy.deepcopy(made.config),
        {"data.path": str(tiny.write_rows(tmp_path / "mine.jsonl", mine)), "data.features": "auto"},
    )
    PolicyWorkdir.make(config, tmp_path / "run")
    work = PolicyWorkdir.open(tmp_path / "run")
    theirs = Workdir.open(directory / "run").dataset.splits
    work, split = work.with_people(str(directory / "rows.jsonl"))
    assert set(split.users) == set(theirs["test"].users)
    assert "were trained on and are left out" in caplog.text


def test_a_benchmark_has_the_same_people_with_and_without_an_encoder():
    """Cold and warm policies are scored on the same choices: the size of a batch does not make the data."""
    config = get_config("dpo")
    config.data.train_users, config.data.eval_users, config.evaluate.targets = 10, 10, 12
    data = load_people(config, Path("nowhere"))
    reward = get_config("np_btl")
    reward.data = config.data
    theirs = load_dataset(reward)
    for name in ("chosen", "rejected", "count"):
        np.testing.assert_array_equal(
            getattr(data.splits["test"].table, name), getattr(theirs.splits["test"].table, name)
        )


def test_an_encoder_of_another_feature_size_is_named(finished, made, tmp_path):
    directory, _ = finished
    config = copy.deepcopy(made.config)
    rows = tmp_path / "others.jsonl"
    rows.write_text((directory / "rows.jsonl").read_text())
    config.data.path, config.data.components = str(rows), 5
    message = complaint(PolicyWorkdir.make, config, tmp_path / "run")
    assert "reads features of 9 numbers, these data have 6" in message


def test_choices_about_texts_that_are_too_long_are_left_out_and_counted(made, tmp_path, caplog):
    records = tiny.rows()
    records[3]["response_a"] += " word1" * 5
    config = copy.deepcopy(made.config)
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", records))
    config.encoder.init_from, config.encoder.frozen = "", False
    config.policy.max_length = int(made.tokens.lengths.max())
    work = PolicyWorkdir.make(config, tmp_path / "run")
    lost = work.dataset.report["left_out_rows"]["of texts that are too long"]
    assert lost == 1
    assert f"{lost} choices about texts that are too long are left out" in caplog.text
    for split in work.dataset.splits.values():
        real = np.asarray(split.table.mask)
        assert (work.tokens.lengths[np.asarray(split.table.chosen)[real]] > 0).all()
        assert (work.tokens.lengths[np.asarray(split.table.rejected)[real]] > 0).all()
