"""Weights of choices: two halves are one whole, in posteriors, losses and scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, Episode, RewardModel, SetEncoder, neural_process_loss
from fssa_jax.config import Evaluation
from fssa_jax.evaluate.scores import Scores
from fssa_jax.ops import join_choices, masked_mean, truncate_context
from fssa_jax.ops.metrics import calibration_counts, ece_from_counts
from fssa_jax.tasks.policy_loss import reweighted
from fssa_jax.tasks.predictor import Predictions

PEOPLE, N, TEXTS, D = 3, 5, 11, 4
ENCODERS = {
    "normal": BayesEncoder(rounds=3),
    "discrete": BayesEncoder(support=7),
    "liked and disliked": BayesEncoder(("difference", "responses"), rounds=3),
    "attention": SetEncoder(width=8, latent_dim=6, heads=2),
    "mean": SetEncoder(width=8, latent_dim=6, aggregation="mean"),
    "sum": SetEncoder(width=8, latent_dim=6, aggregation="sum", prior_choice=False),
}


@pytest.fixture(scope="module")
def context():
    rng = np.random.default_rng(0)
    ids = jnp.asarray(np.stack([rng.permutation(TEXTS)[: 2 * N] for _ in range(PEOPLE)]))
    mask = jnp.arange(N)[None] < jnp.array([[N], [3], [0]])
    return Comparisons(ids[:, :N], ids[:, N:], mask)


def with_lists(context: Comparisons) -> Comparisons:
    rng = np.random.default_rng(1)
    others = jnp.asarray(rng.integers(0, TEXTS, (PEOPLE, N, 2)))
    return dataclasses.replace(context, others=others, listed=jnp.asarray(rng.random((PEOPLE, N, 2)) < 0.6))


def weighted(context: Comparisons, weight: float) -> Comparisons:
    return dataclasses.replace(context, weight=jnp.full((PEOPLE, N), weight))


def twice(context: Comparisons, weight: float) -> Comparisons:
    one = weighted(context, weight)
    return join_choices(one, one)


@pytest.fixture(scope="module", params=ENCODERS)
def infer(request, context):
    model = RewardModel(encoder=ENCODERS[request.param], width=6, target="linear", head="bilinear", population="linear")
    features = jnp.asarray(np.random.default_rng(2).normal(size=(TEXTS, D)), jnp.float32)
    episode = Episode(context, context, jnp.arange(PEOPLE), jnp.zeros(PEOPLE, int))
    variables = model.init(jax.random.key(0), episode, features)
    return lambda choices: model.apply(variables, choices, features, method="infer")


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


def test_two_halves_are_one_whole(context, infer):
    close(infer(twice(context, 0.5)), infer(context))
    half = infer(weighted(context, 0.5)).mean
    assert np.abs(np.asarray(half - infer(context).mean)[:2]).max() > 1e-3


def test_without_weights_or_with_weights_of_one_it_is_the_same(context, infer):
    for a, b in zip(jax.tree.leaves(infer(weighted(context, 1.0))), jax.tree.leaves(infer(context)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_has_no_weight_whatever_stands_there(context, infer):
    odd = dataclasses.replace(context, weight=jnp.where(context.mask, 1.0, 7.0))
    close(infer(odd), infer(context))


@pytest.mark.parametrize("name", ["normal", "discrete", "attention"])
def test_two_half_lists_are_one(context, name):
    lists = with_lists(context)
    model = RewardModel(encoder=ENCODERS[name], width=6, target="linear", head="bilinear")
    features = jnp.asarray(np.random.default_rng(2).normal(size=(TEXTS, D)), jnp.float32)
    episode = Episode(lists, lists, jnp.arange(PEOPLE), jnp.zeros(PEOPLE, int))
    variables = model.init(jax.random.key(0), episode, features)
    close(*(model.apply(variables, c, features, method="infer") for c in (twice(lists, 0.5), lists)))


def test_the_halves_of_a_tie_are_the_mean_of_both_log_likelihoods(context):
    """In the posterior of a discrete prior, by Bayes' rule in float64."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 1, 2, D))
    tie = Comparisons(
        jnp.asarray(np.concatenate([a, b], 1), jnp.float32),
        jnp.asarray(np.concatenate([b, a], 1), jnp.float32),
        jnp.ones((1, 4), bool),
        weight=jnp.full((1, 4), 0.5),
    )
    encoder = BayesEncoder(support=7)
    variables = encoder.init(jax.random.key(0), tie)
    kinds = np.asarray(variables["params"]["prior"]["kinds"], np.float64)[:, :D]
    margin = (a - b)[0] @ kinds.T
    log_p = 0.5 * (-np.logaddexp(0, -margin) - np.logaddexp(0, margin)).sum(0)
    p = np.exp(log_p) / np.exp(log_p).sum()
    np.testing.assert_allclose(encoder.apply(variables, tie).mean[0], p @ kinds, atol=1e-5)


def test_the_loss_is_the_weighted_mean():
    rng = np.random.default_rng(4)
    log_p = jnp.asarray(-rng.random((3, 5)), jnp.float32)
    mask = jnp.array([True, True, True, True, False])
    weight = jnp.array([1.0, 0.5, 0.5, 1.0, 9.0])
    expected = -(log_p.mean(0)[:4] @ weight[:4]) / 3
    out = neural_process_loss(log_p, mask, weight=weight)
    assert float(out.nll) == pytest.approx(float(expected), abs=1e-6)
    ones = neural_process_loss(log_p, mask, weight=jnp.ones(5))
    assert float(ones.loss) == float(neural_process_loss(log_p, mask).loss)


def test_a_mean_of_nothing_is_zero_with_zero_gradient():
    def of(x):
        return masked_mean(x, jnp.array([False, True]), jnp.array([1.0, 0.0]))

    value, gradient = jax.value_and_grad(of)(jnp.array([jnp.nan, 3.0]))
    assert (float(value), gradient.tolist()) == (0.0, [0.0, 0.0])


def test_scores_count_a_tie_once():
    """One person: a hit, a miss, and the halves of a tie that the model predicts one way."""
    targets = Comparisons(
        jnp.array([[1, 3, 5, 6, 0]]),
        jnp.array([[2, 4, 6, 5, 0]]),
        jnp.array([[True, True, True, True, False]]),
        weight=jnp.array([[1.0, 1.0, 0.5, 0.5, 1.0]]),
    )
    p = np.array([[[0.9, 0.4, 0.8, 0.2, 0.5]]])
    none = np.zeros((1, 1, 0))
    scores = Scores((0,), np.asarray(targets.mask), targets, Evaluation(bootstrap=7), 0)
    scores.add("", [Predictions(np.log(p), none, none, {})])
    assert scores.report["accuracy"]["0"]["mean"] == pytest.approx((1 + 0 + 0.5) / 3)
    expected = -(np.log(0.9) + np.log(0.4) + 0.5 * np.log(0.8 * 0.2)) / 3
    assert scores.report["nll"]["0"]["mean"] == pytest.approx(expected)


def test_calibration_counts_by_weight():
    p, mask = jnp.array([[0.75, 0.75, 0.75, 0.25, 0.25]]), jnp.ones((1, 5), bool)
    halves = calibration_counts(p, mask, weight=jnp.array([[1.0, 1.0, 1.0, 0.5, 0.5]]))
    assert float(halves[..., 0].sum()) == 4.0
    assert float(ece_from_counts(halves.sum(0))) == pytest.approx(0, abs=1e-6)


def test_imitation_counts_by_weight(context):
    sides = jnp.full((PEOPLE, N), 0.1), jnp.full((PEOPLE, N), 0.1)
    weight = jnp.where(jnp.arange(N) == 0, 0.5, 1.0)
    a, b = reweighted(dataclasses.replace(context, weight=jnp.broadcast_to(weight, (PEOPLE, N))), *sides)
    np.testing.assert_allclose((a + b).sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(a[:, 0] / a[:, 1], 0.5, atol=1e-6)


def test_a_shorter_context_keeps_its_weights(context):
    episode = truncate_context(Episode(weighted(context, 0.5), context, 0, 0), 2)
    np.testing.assert_array_equal(episode.context.weight, np.full((PEOPLE, N), 0.5))


def test_weights_of_another_number_of_choices_are_refused(context):
    features = Comparisons(jnp.ones((2, 3, 5)), jnp.ones((2, 3, 5)), jnp.ones((2, 3), bool), weight=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"weight must be \(2, 3\)"):
        BayesEncoder().init(jax.random.key(0), features)
