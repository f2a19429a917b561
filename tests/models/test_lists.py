"""Choices of one among several are one observation: in encoders, likelihood, predictions and the policy's loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, Episode, RewardModel, SetEncoder, choice_log_likelihood
from fssa_jax.ops import list_dpo_loss, per_choice, responses_of
from fssa_jax.ops.losses import list_response_weights, response_weights
from fssa_jax.tasks.reward_predictor import reward_predictor
from tests.conftest import make_comparisons

PEOPLE, N, OTHERS, D = 3, 5, 2, 4
ENCODERS = {
    "set": SetEncoder(width=8, latent_dim=6, heads=2),
    "set of margins": SetEncoder(width=8, latent_dim=6, heads=2, inputs=("difference", "margin")),
    "normal": BayesEncoder(("difference",), rounds=4),
    "discrete": BayesEncoder(("difference",), support=7),
}


@pytest.fixture(scope="module")
def lists():
    rng = np.random.default_rng(0)
    others = jnp.asarray(rng.normal(size=(PEOPLE, N, OTHERS, D)), jnp.float32)
    listed = jnp.asarray(rng.random((PEOPLE, N, OTHERS)) < 0.6).at[0, 0].set(True)
    pairs = make_comparisons(1, (PEOPLE, N), D, [5, 3, 0])
    return dataclasses.replace(pairs, others=others, listed=listed)


def model_of(name):
    return RewardModel(
        encoder=ENCODERS[name], width=6, target="linear", head="bilinear", population="linear", text_dropout=0.0
    )


def started(model, choices):
    episode = Episode(choices, choices, jnp.arange(PEOPLE), jnp.zeros(PEOPLE, int))
    variables = model.init(jax.random.key(0), episode)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_lists_of_two_are_pairs(lists, name):
    """Whatever stands where nothing was offered."""
    model = model_of(name)
    pairs = dataclasses.replace(lists, others=None, listed=None)
    two = dataclasses.replace(lists, listed=jnp.zeros_like(lists.listed))
    variables = started(model, pairs)
    for method in ("infer", "log_likelihood"):
        z = () if method == "infer" else (jnp.ones((2, PEOPLE, model.latent_dim)),)
        a, b = (model.apply(variables, choices, *z, method=method) for choices in (pairs, two))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(np.where(np.isfinite(x), x, 0), np.where(np.isfinite(y), y, 0), atol=2e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_order_of_the_others_does_not_matter(lists, name):
    model = model_of(name)
    variables = started(model, lists)
    full = dataclasses.replace(lists, listed=jnp.ones_like(lists.listed))
    turned = dataclasses.replace(
        full, rejected=full.others[..., 0, :], others=full.others.at[..., 0, :].set(full.rejected)
    )
    a, b = (model.apply(variables, choices, method="infer") for choices in (full, turned))
    np.testing.assert_allclose(a.mean, b.mean, atol=2e-5)
    plain = model.apply(variables, dataclasses.replace(full, others=None, listed=None), method="infer")
    assert np.abs(np.asarray(plain.mean[:2] - a.mean[:2])).max() > 1e-3


@pytest.mark.parametrize("name", ["set", "set of margins"])
def test_a_set_encoder_reads_a_list_as_the_mean_of_its_pairs(lists, name):
    """However many others there are like the one that was rejected."""
    pairs = dataclasses.replace(lists, others=None, listed=None)
    alike = dataclasses.replace(lists, others=jnp.broadcast_to(lists.rejected[..., None, :], lists.others.shape))
    model = model_of(name)
    variables = started(model, pairs)
    a, b = (model.apply(variables, choices, method="infer").mean for choices in (pairs, alike))
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_list_is_one_observation_not_many():
    """Choosing one of four that are alike says as much as a certain choice between few: log ¼, not 3 log ½."""
    assert float(choice_log_likelihood(jnp.zeros(3))) == pytest.approx(np.log(0.25))
    assert float(choice_log_likelihood(jnp.zeros(3), jnp.array([True, True, False]))) == pytest.approx(np.log(1 / 3))


def test_newtons_method_finds_the_mode(lists):
    """The gradient of the posterior, by automatic differentiation, is 0 there."""
    encoder = BayesEncoder(("difference",), rounds=12)
    variables = encoder.init(jax.random.key(0), lists)
    z = encoder.apply(variables, lists).mean
    rewards = jnp.concatenate([lists.chosen[..., None, :], lists.rejected[..., None, :], lists.others], axis=-2)

    def log_posterior(z, i):
        r = rewards[i] @ z
        log_p = choice_log_likelihood(
            r[:, :1] - r[:, 1:], jnp.concatenate([jnp.ones((N, 1), bool), lists.listed[i]], -1)
        )
        return jnp.where(lists.mask[i], log_p, 0).sum() - 0.5 * (z**2).sum()

    for i in range(PEOPLE):
        np.testing.assert_allclose(jax.grad(log_posterior)(z[i], i), 0, atol=1e-4)
    precision = -jax.hessian(log_posterior)(z[0], 0)
    scale = encoder.apply(variables, lists).scale[0]
    np.testing.assert_allclose(scale, np.sqrt(np.diag(np.linalg.inv(precision))), rtol=1e-3)


def test_the_discrete_posterior_is_bayes_rule(lists):
    encoder = BayesEncoder(("difference",), support=7)
    variables = encoder.init(jax.random.key(0), lists)
    kinds = np.asarray(variables["params"]["prior"]["kinds"])[:, :D]
    rewards = jnp.concatenate([lists.chosen[..., None, :], lists.rejected[..., None, :], lists.others], axis=-2)
    r = np.where(
        np.concatenate([np.ones((PEOPLE, N, 2), bool), lists.listed], -1)[..., None], rewards @ kinds.T, -np.inf
    )
    log_p = r[:, :, 0] - np.asarray(jax.nn.logsumexp(jnp.asarray(r), axis=2))
    p = jax.nn.softmax(jnp.asarray((log_p * np.asarray(lists.mask)[..., None]).sum(1)), axis=-1)
    np.testing.assert_allclose(encoder.apply(variables, lists).mean, p @ kinds, atol=1e-5)


def test_likes_are_not_read_from_lists(lists):
    encoder = BayesEncoder(("responses",))
    with pytest.raises(ValueError, match="choices between two"):
        encoder.init(jax.random.key(0), lists)
    with pytest.raises(ValueError, match="others must be"):
        SetEncoder(width=8, heads=2).init(jax.random.key(0), dataclasses.replace(lists, listed=None))
    dpl = RewardModel("dpl", latent="none")
    pairs = dataclasses.replace(lists, others=None, listed=None)
    with pytest.raises(ValueError, match="between two"):
        dpl.apply(dpl.init(jax.random.key(0), Episode(pairs, pairs, 0, 0)), lists, method="log_likelihood")


@pytest.fixture(scope="module")
def four(lists):
    """Choices among four of nine texts."""
    rng = np.random.default_rng(3)
    ids = jnp.asarray(np.stack([rng.permutation(9)[:4] for _ in range(PEOPLE * N)]).reshape(PEOPLE, N, 4))
    return Comparisons(ids[..., 0], ids[..., 1], lists.mask, ids[..., 2:], jnp.ones((PEOPLE, N, 2), bool))


@pytest.fixture(scope="module")
def predict(four):
    """What a model that has read these choices predicts of others."""
    model = dataclasses.replace(model_of("normal"), encoder=BayesEncoder(("difference",), rounds=3, gaussian=True))
    features = jnp.asarray(np.random.default_rng(2).normal(size=(9, D)), jnp.float32)

    def episode(targets):
        return Episode(four, targets, jnp.arange(PEOPLE), jnp.zeros(PEOPLE, int))

    variables = model.init(jax.random.key(0), episode(four), features)
    predictor = reward_predictor(model, features, 8)(variables)
    return lambda targets: predictor.predict(episode(targets), (5,))


def test_predictions_are_probabilities_of_all_that_was_offered(four, predict):
    ids = jnp.concatenate([four.chosen[..., None], four.rejected[..., None], four.others], axis=-1)

    def turned(i):
        mine = jnp.roll(ids, -i, axis=-1)
        return dataclasses.replace(four, chosen=mine[..., 0], rejected=mine[..., 1], others=mine[..., 2:])

    p = [np.exp(predict(turned(i)).log_p[0]) for i in range(4)]
    np.testing.assert_allclose(sum(p), 1, atol=1e-5)
    first = predict(four)
    np.testing.assert_allclose(np.exp(first.log_best_other[0]), np.max(p[1:], axis=0), atol=1e-5)
    np.testing.assert_array_equal(first.hits[0], p[0] > np.max(p[1:], axis=0))


@pytest.mark.parametrize("padding", range(0, 9, 4))
def test_predictions_do_not_depend_on_what_was_not_offered(four, predict, padding):
    short = dataclasses.replace(four, others=four.others[..., :1], listed=four.listed[..., :1])
    padded = dataclasses.replace(
        four, others=four.others.at[..., 1].set(padding), listed=four.listed.at[..., 1].set(False)
    )
    a, b = predict(short), predict(padded)
    np.testing.assert_allclose(b.log_p, a.log_p, atol=1e-5)
    np.testing.assert_allclose(b.log_best_other, a.log_best_other, atol=1e-5)


def test_the_responses_of_a_choice_come_back_in_its_order(lists):
    assert responses_of(lists).shape == (PEOPLE, N * (2 + OTHERS), D)
    one = per_choice(responses_of(lists)[..., 0], lists)
    np.testing.assert_array_equal(
        one[1, 2], [lists.chosen[1, 2, 0], lists.rejected[1, 2, 0], *lists.others[1, 2, :, 0]]
    )


def test_list_losses_of_two_are_those_of_pairs():
    rng = np.random.default_rng(0)
    chosen, rejected = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    mask = jnp.arange(4)[None] < jnp.array([[4], [2], [0]])
    rewards = jnp.stack([chosen, rejected, 0 * chosen + 99], -1)
    listed = jnp.stack([mask, mask, jnp.zeros_like(mask)], -1)
    for worth in ("reward", "advantage"):
        a, b = response_weights(chosen, rejected, mask, 0.5, worth)
        weights = list_response_weights(rewards, listed, 0.5, worth)
        np.testing.assert_allclose(weights[..., 0], a, atol=1e-6)
        np.testing.assert_allclose(weights[..., 1], b, atol=1e-6)
        assert not weights[..., 2].any()
    offered = jnp.array([True, True, False])
    loss = list_dpo_loss(rewards, jnp.broadcast_to(offered, rewards.shape))
    np.testing.assert_allclose(loss, -jax.nn.log_sigmoid(chosen - rejected), atol=1e-5)
    p = jax.nn.sigmoid(chosen)
    both = jnp.stack([p, 1 - p, 0 * p], -1)
    soft = list_dpo_loss(rewards, jnp.broadcast_to(offered, rewards.shape), both, 0.25)
    reverse = -jax.nn.log_sigmoid(rejected - chosen)
    np.testing.assert_allclose(soft, 0.75 * loss + 0.25 * (p * loss + (1 - p) * reverse), atol=1e-5)


@pytest.mark.parametrize("support", [0, 3])
def test_gradients_of_padded_lists_with_lapses_are_finite(support):
    """Padding has weight 0, and no division by it."""
    rng = np.random.default_rng(0)
    d = 4
    chosen, rejected = (jnp.asarray(rng.normal(size=(2, 5, d)), jnp.float32) for _ in range(2))
    others = jnp.asarray(rng.normal(size=(2, 5, 2, d)), jnp.float32)
    offered = jnp.asarray(rng.random((2, 5, 2)) < 0.7)
    context = Comparisons(chosen, rejected, jnp.arange(5)[None] < jnp.array([[0], [3]]), others, offered)
    noise = jnp.asarray(rng.normal(size=(2, 6, d + 1)), jnp.float32)
    encoder = BayesEncoder(rounds=3, support=support, gaussian=True, lapses=True)
    variables = encoder.init(jax.random.key(0), context, noise=noise)
    gradient = jax.grad(lambda v: jnp.square(encoder.apply(v, context, noise=noise).points).sum())(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path
