"""Predictions in batches equal predictions at once, and average probabilities over latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import Comparisons, Episode, RewardModel, SetEncoder
from fssa_jax.evaluate import predictor as predicting
from fssa_jax.evaluate.predictor import evaluation_episodes, make_predictor
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
    whole = make_predictor(MODEL, 4)(variables, FEATURES, episodes, (0, 2, 5))
    monkeypatch.setattr(predicting, "_BATCH", 3)
    parts = make_predictor(MODEL, 4)(variables, FEATURES, episodes, (0, 2, 5))
    assert whole[0].shape == (3, USERS, 5)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_probabilities_of_the_two_orders_sum_to_one(episodes, variables):
    targets = episodes.targets
    flipped = Comparisons(targets.rejected, targets.chosen, targets.mask)
    other = Episode(episodes.context, flipped, episodes.user, episodes.group)
    predict = make_predictor(MODEL, 5)
    there, back = (predict(variables, FEATURES, e, (5,))[0] for e in (episodes, other))
    np.testing.assert_allclose(np.exp(there) + np.exp(back), 1, atol=1e-5)


def test_contexts_are_nested_and_targets_are_fixed():
    first, again, other = (evaluation_episodes(0, d, TABLE, jnp.arange(USERS), max_context=5) for d in (0, 0, 1))
    np.testing.assert_array_equal(first.context.chosen, again.context.chosen)
    assert (first.context.chosen != other.context.chosen).any()
    np.testing.assert_array_equal(first.targets.chosen, other.targets.chosen)
    short = evaluation_episodes(0, 0, TABLE, jnp.arange(USERS), max_context=2)
    np.testing.assert_array_equal(first.context.chosen[:, :2], short.context.chosen)
