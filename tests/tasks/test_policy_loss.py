"""The loss of policies: what each term is and weighs, what it reaches, and that people's choices are followed."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.config import Dpo, FrozenEncoder, Hinge, Ipo, NewEncoder, RobustDpo, WarmEncoder, check
from fssa_jax.evaluate.episodes import evaluation_episodes
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.scoring import table_log_probs, text_log_probs
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.step import many_steps
from tests.policy_steps import first_rows, start, step_of, with_adapter, with_encoder
from tests.tiny_policy import change
from tests.trees import assert_same, largest_difference


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return Workdir.open(steered)


def alone(config, **settings):
    """A copy whose loss is that of the preferences alone, with other settings of the objective."""
    config = copy.deepcopy(config)
    config.objective = dataclasses.replace(config.objective, sft_weight=0.0, **settings)
    return config


def one_step(made, config):
    """Metrics of one batch, the gradient of its loss, and what the loss is made of, for some configuration."""
    check(config)
    task = dataclasses.replace(made.task, config=config)
    # One step of plain descent: the change of the parameters is the gradient.
    optimizer = optax.sgd(1.0)
    state, tables = start(task, optimizer, moved=True), task.tables("train")
    after, metrics = jax.jit(step_of(task, optimizer))(state, tables)
    gradient = jax.tree.map(jnp.subtract, state.params, after.params)
    people, conditioner, variables = first_rows(task, tables), task.conditioner(), state.trained
    q = conditioner.apply(variables, people.episode, tables.features, method="latent_of")
    z = q.mean + q.scale * jax.vmap(lambda key: jax.random.normal(key, q.mean.shape[1:]))(people.noise)
    return metrics, gradient, (task, variables, people.episode, tables, z)


def log_probs(task, variables, episode, tables, z):
    """(users, targets, 2) log π(y | x, z) of both responses of every target."""
    adapters = task.conditioner().apply(variables, z, method="adapt")
    ids = jnp.stack([episode.targets.chosen, episode.targets.rejected], -1)
    log_p = text_log_probs(task.base.decoder, tables.base, tables.texts, ids.reshape(-1), adapters)
    return np.asarray(log_p).reshape(ids.shape), np.asarray(ids)


def margins(task, variables, episode, tables, z, per_token=False):
    """(users, targets) β-scaled margins of a batch, written out."""
    log_p, ids = log_probs(task, variables, episode, tables, z)
    ratio = log_p - np.asarray(tables.reference)[ids]
    if per_token:
        ratio = ratio / np.asarray(tables.texts.ends - tables.texts.starts)[ids]
    return task.config.objective.beta * (ratio[..., 0] - ratio[..., 1])


def mean_over_people(losses, mask):
    """The mean over people of means over their targets."""
    return ((losses * mask).sum(1) / mask.sum(1)).mean()


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_the_loss_of_a_step_reaches_the_encoder_through_the_adapters(made, kind):
    """Fails where z stops reaching the policy: nothing else of the loss depends on what the encoder says."""
    config = with_adapter(with_encoder(made.config, WarmEncoder), kind, places=("query", "gate"))
    config.optim.warmup_steps, config.optim.weight_decay = 0, 0.0
    task = dataclasses.replace(made.task, config=config)
    optimizer = task.optimizer(MAIN)
    state = start(task, optimizer, moved=True)
    before = jax.device_get(state.params["reward"])
    after, _ = jax.jit(step_of(task, optimizer))(state, task.tables("train"))
    assert largest_difference(after.params["reward"], before) > 0


def test_a_frozen_encoder_stays_as_it_is_whatever_the_optimiser_adds(made):
    """Nor does weight decay shrink it, as it shrinks what no gradient reaches."""
    optimizer = made.task.optimizer(MAIN)
    state = start(made.task, optimizer)
    before = jax.device_get(state.params)
    after, _ = jax.jit(many_steps(step_of(made.task, optimizer), 2))(state, made.task.tables("train"))
    assert_same(after.params["reward"], before["reward"])
    assert_same(before["reward"], teacher_variables(made.config)["params"])
    assert largest_difference(after.params["hyper"], before["hyper"]) > 0


def test_the_loss_of_the_reward_model_counts_as_much_as_it_is_told(made):
    free = with_encoder(alone(made.config), WarmEncoder)
    plain, without, _ = one_step(made, free)
    both, gradient, _ = one_step(made, change(copy.deepcopy(free), {"encoder.auxiliary_weight": 0.5}))
    np.testing.assert_allclose(both["loss"], plain["loss"] + 0.5 * both["loss/reward"], rtol=1e-5)
    assert largest_difference(gradient["reward"], without["reward"]) > 1e-4
    assert largest_difference(gradient["hyper"], without["hyper"]) < 1e-6


def test_labels_of_the_reward_model_are_its_probabilities_of_each_choice(made):
    metrics, _, parts = one_step(made, with_encoder(alone(made.config), FrozenEncoder, distil=0.75))
    margin = margins(*parts)
    task, variables, episode, tables, z = parts
    likelihood = task.reward.apply(
        {"params": variables["params"]["reward"]}, episode.targets, z[None], tables.features, method="log_likelihood"
    )[0]
    p, mask = np.exp(np.asarray(likelihood)), np.asarray(episode.targets.mask)
    assert p.std() > 1e-3
    right, wrong = np.log1p(np.exp(-margin)), np.log1p(np.exp(margin))
    losses = 0.25 * right + 0.75 * (p * right + (1 - p) * wrong)
    np.testing.assert_allclose(metrics["loss"], mean_over_people(losses, mask), rtol=1e-4)


@pytest.mark.parametrize("worth", ["advantage", "reward"])
def test_what_is_imitated_is_what_the_reward_model_likes(made, worth):
    """−Σ w log π(y | x, z) of all responses of a person's targets, per token of a typical text."""
    config = with_encoder(made.config, FrozenEncoder, imitate=worth)
    config.objective = Dpo(sft_weight=2.0, beta=0.3)
    metrics, _, parts = one_step(made, config)
    task, variables, episode, tables, z = parts
    log_p, ids = log_probs(*parts)
    mask = np.asarray(episode.targets.mask)
    rewards = np.asarray(
        task.conditioner().apply(
            variables,
            jnp.asarray(ids.reshape(len(ids), -1)),
            z[None],
            tables.features,
            method=lambda c, *a: c.reward_model.rewards(*a),
        )
    )[0, ..., 0]
    rewards = rewards.reshape(ids.shape)
    worths = rewards - rewards[..., ::-1] if worth == "advantage" else rewards
    weight = np.exp(worths / 0.3) * mask[..., None]
    weight /= weight.sum((1, 2), keepdims=True)
    assert weight.max() > 1.2 * weight[weight > 0].min()
    lengths = np.asarray(tables.texts.ends - tables.texts.starts)
    expected = -(weight * log_p).sum((1, 2)).mean() / lengths[lengths > 0].mean()
    np.testing.assert_allclose(metrics["loss/sft"], expected, rtol=1e-4)
    choices = mean_over_people(np.log1p(np.exp(-margins(*parts))), mask)
    np.testing.assert_allclose(metrics["loss"], choices + 2 * expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "formula"),
    [
        (Ipo, lambda margin, right, wrong: (margin / 0.4 - 1 / (2 * 0.4)) ** 2),
        (Hinge, lambda margin, right, wrong: np.maximum(1 - margin, 0)),
        (Dpo, lambda margin, right, wrong: 0.8 * right + 0.2 * wrong),
        (RobustDpo, lambda margin, right, wrong: (0.8 * right - 0.2 * wrong) / (1 - 2 * 0.2)),
    ],
)
def test_the_loss_of_a_step_is_the_one_that_is_asked_for(made, objective, formula):
    """Written out from the margins, by the formulae of `losses.dpo_loss`."""
    smoothing = {"label_smoothing": 0.2} if objective in (Dpo, RobustDpo) else {}
    config = dataclasses.replace(alone(made.config), objective=objective(sft_weight=0.0, beta=0.4, **smoothing))
    metrics, _, parts = one_step(made, config)
    margin, mask = margins(*parts), np.asarray(parts[2].targets.mask)
    losses = formula(margin, np.log1p(np.exp(-margin)), np.log1p(np.exp(margin)))
    assert np.abs(margin).max() > 1e-3
    np.testing.assert_allclose(metrics["loss"], mean_over_people(losses, mask), rtol=1e-3)


def test_a_length_normalised_loss_compares_tokens(made):
    metrics, _, parts = one_step(made, alone(made.config, length_normalised=True))
    margin, mask = margins(*parts, per_token=True), np.asarray(parts[2].targets.mask)
    np.testing.assert_allclose(metrics["rewards/margins"], mean_over_people(margin, mask), rtol=1e-3)


def first_step(made, divergence):
    """Metrics of the first step of a policy with a new encoder and a latent that has a width."""
    config = with_encoder(alone(made.config), NewEncoder, divergence=divergence, kl_weight=0.5)
    assert config.encoder.model.encoder.gaussian
    check(config)
    task = dataclasses.replace(made.task, config=config)
    optimizer = task.optimizer(MAIN)
    return jax.jit(step_of(task, optimizer))(start(task, optimizer), task.tables("train"))[1]


def test_the_divergence_of_a_latent_is_that_of_the_encoder_and_weighs_what_it_is_told(made):
    found = [first_step(made, name) for name in ("vpl", "elbo", "published")]
    assert len({round(float(metrics["kl"]), 5) for metrics in found}) == 3
    for metrics in found:
        # At the first step the policy is the reference: its part of the loss is log 2.
        np.testing.assert_allclose(metrics["loss"], np.log(2) + 0.5 * metrics["kl"], atol=1e-4)


def test_at_the_first_step_the_policy_is_the_reference(made):
    """The adapters are the identity: implied rewards are 0, whatever the context, and the loss is log 2."""
    task = dataclasses.replace(made.task, config=alone(made.config))
    optimizer = task.optimizer(MAIN)
    _, metrics = jax.jit(step_of(task, optimizer))(start(task, optimizer), task.tables("train"))
    np.testing.assert_allclose(metrics["rewards/margins"], 0, atol=1e-4)
    np.testing.assert_allclose(metrics["loss"], np.log(2), atol=1e-4)


@pytest.mark.parametrize("kind", ["film", "lora_core", "lora"])
def test_a_base_in_bfloat16_that_is_computed_again_is_steered_by_weights_in_float32(made, kind):
    """At first the policy is the reference, as the base in bfloat16 says it; the gradient is that in float32 but for
    rounding, and what is trained stays in float32."""
    places = ("residual", "gate") if kind == "film" else ("query", "gate")
    gradients = []
    for dtype, remat in (("float32", "none"), ("bfloat16", "full")):
        config = with_adapter(alone(made.config), kind, places=places)
        config.policy.dtype, config.policy.remat = dtype, remat
        base = load_base(config.policy.base, dtype, remat)
        reference = table_log_probs(base, made.task.tokens)
        task = dataclasses.replace(made.task, config=config, base=base, reference=reference)
        optimizer = optax.sgd(1.0)
        state = start(task, optimizer)
        after, metrics = jax.jit(step_of(task, optimizer))(state, task.tables("train"))
        np.testing.assert_allclose(metrics["rewards/margins"], 0, atol=1e-2 if dtype == "bfloat16" else 1e-4)
        np.testing.assert_allclose(metrics["loss"], np.log(2), atol=1e-2)
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
        moved = jax.tree.map(jnp.subtract, state.params["hyper"], after.params["hyper"])
        gradients.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)]))
    exact, rounded = gradients
    assert np.linalg.norm(exact) > 1e-4
    assert exact @ rounded > 0.98 * np.linalg.norm(exact) * np.linalg.norm(rounded)
    assert np.linalg.norm(rounded) == pytest.approx(np.linalg.norm(exact), rel=0.1)


@pytest.mark.experiments
@pytest.mark.experiments
def test_a_policy_learns_to_follow_choices_and_nothing_else(made):
    """People who like long answers and people who like short ones, whom training has not met."""
    config = with_adapter(with_encoder(made.config, WarmEncoder), "film", places=("query", "value", "gate", "residual"))
    change(config, {"objective.sft_weight": 0.1, "train.users": 16, "train.steps": 60})
    task = dataclasses.replace(made.task, config=config)
    optimizer = task.optimizer(MAIN)
    steps = many_steps(step_of(task, optimizer), 60)
    state, _ = jax.jit(steps)(start(task, optimizer), task.tables("train"))
    table = jax.tree.map(jnp.asarray, made.dataset.splits["test"].table)
    episodes = evaluation_episodes(0, 0, table, jnp.arange(table.group.shape[0]), max_context=3)
    group = np.asarray(episodes.group)
    assert {*group.tolist()} == {0, 1}
    # Everybody with the context of somebody who wants the opposite.
    other = np.array([np.flatnonzero(group != g)[0] for g in group])
    swapped = dataclasses.replace(episodes, context=jax.tree.map(lambda x: x[other], episodes.context))
    predictor = task.predictor(MAIN, made.dataset.splits["test"])(state.variables)
    mask = np.asarray(episodes.targets.mask)
    right = [(predictor.predict(e, (3,)).log_p[0] > np.log(0.5))[mask].mean() for e in (episodes, swapped)]
    assert right[0] > 0.8
    assert right[1] < 0.2
