"""Accuracy with ties, calibration, steering, bootstrap, and the Bayes limit by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fssa_jax.ops import metrics
from fssa_jax.ops.metrics import bayes_log_predictive, expected_calibration_error, preference_accuracy, steering_score


def test_ties_count_half_whatever_rounding_does():
    p = jnp.array([0.5, 0.5 + 5e-8, 0.5 - 5e-8, 0.5001, 0.4999, 1.0, 0.0])
    np.testing.assert_array_equal(preference_accuracy(jnp.log(p)), [0.5, 0.5, 0.5, 1, 0, 1, 0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=40), st.integers(2, 20))
def test_ece_against_a_loop(p, bins):
    p = np.array(p, np.float32)
    confidence, hit = np.maximum(p, 1 - p), np.where(p > 0.5, 1.0, np.where(p < 0.5, 0.0, 0.5))
    index = np.clip(((confidence - np.float32(0.5)) * 2 * bins).astype(int), 0, bins - 1)
    expected = sum(
        abs(confidence[index == b].mean() - hit[index == b].mean()) * (index == b).mean()
        for b in range(bins)
        if (index == b).any()
    )
    assert expected_calibration_error(jnp.asarray(p)[None], bins=bins) == pytest.approx(expected, abs=1e-4)


def test_ece_of_nothing_is_zero_and_of_a_sure_error_is_one():
    assert expected_calibration_error(jnp.full((2, 3), 0.9), jnp.zeros((2, 3), bool)) == 0
    assert expected_calibration_error(jnp.zeros((1, 5))) == pytest.approx(1)


def test_contested_weights_give_the_mean_steering_score_over_items():
    # Item 0: users 0, 1 chose one side, user 2 the other. Item 1: everybody agrees. Item 2: 0 against 1.
    item = jnp.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    side = jnp.array([[True, True, True], [True, True, False], [False, True, False]])
    mask = jnp.array([[True, True, True], [True, True, True], [True, True, False]])
    accuracy = np.array([[1.0, 1, 1], [0.0, 1, 0.5], [1.0, 1, 1]])
    weight = np.asarray(metrics.contested_weights(item, side, mask, 3))
    score = 2 * (weight * accuracy).sum() / weight.sum() - 1
    by_item = [steering_score(jnp.array(0.5), jnp.array(1.0)), steering_score(jnp.array(1.0), jnp.array(0.5))]
    assert score == pytest.approx(np.mean(by_item))
    assert not weight[:, 1].any()


def test_a_tie_that_was_kept_both_ways_is_no_disagreement_between_people():
    item, side = jnp.zeros((3, 2), int), jnp.array([[True, False], [True, True], [False, False]])
    weight = metrics.contested_weights(item, side, jnp.array([[True, True], [False, False], [False, False]]), 1)
    assert not np.asarray(weight).any()
    weight = metrics.contested_weights(item, side, jnp.array([[True, True], [True, False], [True, False]]), 1)
    np.testing.assert_array_equal(weight, [[0, 0], [1, 0], [1, 0]])


def test_bootstrap_resamples_whole_users():
    weights = metrics.bootstrap_weights(jax.random.key(0), 50, 400)
    np.testing.assert_array_equal(weights.sum(1), np.full(400, 50.0))
    low, high = metrics.interval(weights @ jnp.arange(50.0) / 50)
    assert low < 24.5 < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(np.arange(50)) / 50**0.5, rel=0.15)


def test_bayes_predictive_against_enumeration_in_numpy():
    rng = np.random.default_rng(0)
    people, n, t = 4, 3, 5
    context, target = rng.normal(size=(n, people)), rng.normal(size=(t, people))
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    for mask in itertools.product([True, False], repeat=n):
        sigmoid = 1 / (1 + np.exp(-context))
        posterior = prior * np.prod(np.where(np.array(mask)[:, None], sigmoid, 1), axis=0)
        expected = (1 / (1 + np.exp(-target))) @ (posterior / posterior.sum())
        ours = bayes_log_predictive(
            jnp.asarray(context, jnp.float32),
            jnp.array(mask),
            jnp.asarray(target, jnp.float32),
            jnp.log(jnp.asarray(prior, jnp.float32)),
        )
        np.testing.assert_allclose(jnp.exp(ours), expected, rtol=1e-5)
