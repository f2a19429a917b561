"""Predictions in batches equal predictions at once, and average probabilities over latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import Comparisons, Episode, RewardModel, SetEncoder
from fssa_jax.evaluate.episodes import evaluation_episodes
from fssa_jax.tasks import predictor as predicting
from fssa_jax.tasks.reward_predictor import reward_predictor
from fssa_jax.types import ChoiceTable

USERS, TEXTS = 7, 30
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(TEXTS, 3)), jnp.float32)
TABLE = ChoiceTable(
    *jnp.asarray(RNG.integers(0, TEXTS, (2, USERS, 2, 5))),
    count=jnp.full((USERS, 2), 5),  # type: ignore[call-arg]
    group=jnp.zeros(USERS, jnp.int32),
)
MODEL = RewardModel(encoder=SetEncoder(width=8, latent_dim=4, heads=2, gaussian=True), width=8)


@pytest.fixture(scope="module")
def episodes():
    return evaluation_episodes(0, 0, TABLE, jnp.arange(USERS), max_context=5)


@pytest.fixture(scope="module")
def variables(episodes):
    return MODEL.init(jax.random.key(0), episodes, FEATURES)


def test_the_size_of_a_batch_does_not_matter(episodes, variables, monkeypatch):
    predictor = reward_predictor(MODEL, FEATURES, 4)(variables)
    whole = predictor.predict(episodes, (0, 2, 5))
    monkeypatch.setattr(predicting, "_PEOPLE", 3)
    parts = predictor.predict(episodes, (0, 2, 5))
    assert whole.log_p.shape == (3, USERS, 5)
    assert whole.mean.shape == whole.scale.shape == whole.kl().shape == (3, USERS, 4)
    for a, b in zip(
        (whole.log_p, whole.mean, whole.scale, whole.kl()),
        (parts.log_p, parts.mean, parts.scale, parts.kl()),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_everybody_is_predicted_as_if_alone(episodes, variables):
    predictor = reward_predictor(MODEL, FEATURES, 4)(variables)
    whole = predictor.predict(episodes, (0, 5))
    for user in (0, USERS - 1):
        alone = predictor.predict(jax.tree.map(lambda x, u=user: x[u : u + 1], episodes), (0, 5))
        np.testing.assert_allclose(whole.log_p[:, user : user + 1], alone.log_p, atol=1e-5)
        np.testing.assert_allclose(whole.mean[:, user : user + 1], alone.mean, atol=1e-5)


def test_probabilities_of_the_two_orders_sum_to_one(episodes, variables):
    targets = episodes.targets
    flipped = Comparisons(targets.rejected, targets.chosen, targets.mask)
    other = Episode(episodes.context, flipped, episodes.user, episodes.group)
    predictor = reward_predictor(MODEL, FEATURES, 5)(variables)
    there, back = (predictor.predict(e, (5,)).log_p for e in (episodes, other))
    np.testing.assert_allclose(np.exp(there) + np.exp(back), 1, atol=1e-5)


def test_contexts_are_nested_and_targets_are_fixed():
    first, again, other = (evaluation_episodes(0, d, TABLE, jnp.arange(USERS), max_context=5) for d in (0, 0, 1))
    np.testing.assert_array_equal(first.context.chosen, again.context.chosen)
    assert (first.context.chosen != other.context.chosen).any()
    np.testing.assert_array_equal(first.targets.chosen, other.targets.chosen)
    short = evaluation_episodes(0, 0, TABLE, jnp.arange(USERS), max_context=2)
    np.testing.assert_array_equal(first.context.chosen[:, :2], short.context.chosen)


def test_latents_are_the_means_that_predictions_are_made_with(episodes, variables):
    predictor = reward_predictor(MODEL, FEATURES, 4)(variables)
    assert (predictor.reads, predictor.gaussian) == (True, True)
    found = predictor.predict(episodes, (0, 2, 5))
    for i, k in enumerate((0, 2, 5)):
        np.testing.assert_allclose(predictor.latents(episodes, k), found.mean[i], atol=1e-6)
    assert np.abs(found.mean[0] - found.mean[2]).max() > 1e-4
    assert (found.scale > 0).all()


def test_a_model_without_a_context_says_the_same_for_every_k(episodes):
    blind = RewardModel(latent="none", width=8)
    variables = blind.init(jax.random.key(0), episodes, FEATURES)
    predictor = reward_predictor(blind, FEATURES, 4)(variables)
    found = predictor.predict(episodes, (0, 2, 5))
    assert not predictor.reads
    assert found.log_p.shape == (3, USERS, 5)
    np.testing.assert_array_equal(found.log_p[0], found.log_p[2])
    assert found.mean.shape == (3, USERS, 0)
    assert predictor.latents(episodes, 5).shape == (USERS, 0)


def test_the_divergence_is_that_of_each_coordinate():
    rng = np.random.default_rng(0)
    mean, scale = rng.normal(size=(2, 3, 4)), rng.uniform(0.1, 2, (2, 3, 4))
    kl = predicting.Predictions(np.zeros((2, 3, 1)), mean, scale, {}).kl()
    z = mean + scale * rng.normal(size=(200_000, 2, 3, 4))
    density = -0.5 * ((z - mean) / scale) ** 2 - np.log(scale) + 0.5 * z**2
    np.testing.assert_allclose(kl, density.mean(0), atol=0.03)
