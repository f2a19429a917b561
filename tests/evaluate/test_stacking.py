"""Stacking: the weights are those of the maximum, found by another method, and models that fail get none."""

import numpy as np
import scipy.optimize

from fssa_jax.evaluate.stacking import mixed, stack


def predictions(models=3, targets=400, seed=0):
    rng = np.random.default_rng(seed)
    return np.log(rng.uniform(0.05, 0.95, (models, targets))), rng.integers(0, 3, targets).astype(float)


def test_the_weights_maximise_the_likelihood():
    log_p, weight = predictions()

    def loss(free):
        shares = np.exp([0, *free]) / np.exp([0, *free]).sum()
        return -(weight * mixed(log_p, shares)).sum()

    best = scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-8})
    found = stack(log_p, weight)
    np.testing.assert_allclose(found.sum(), 1)
    np.testing.assert_allclose(-(weight * mixed(log_p, found)).sum(), best.fun, rtol=1e-5)


def test_a_model_that_is_better_everywhere_gets_all():
    log_p, weight = predictions(targets=60)
    log_p[1] = log_p.max(axis=0) + 0.1
    np.testing.assert_allclose(stack(log_p, weight), [0, 1, 0], atol=1e-3)


def test_padding_and_models_that_fail_do_not_count():
    log_p, weight = predictions()
    padded = log_p.copy()
    padded[0, weight == 0] = np.nan
    np.testing.assert_allclose(stack(padded, weight), stack(log_p, weight))
    failed = log_p.copy()
    failed[2, np.flatnonzero(weight)[0]] = np.nan
    found = stack(failed, weight)
    np.testing.assert_allclose(found[:2], stack(log_p[:2], weight))
    assert found[2] == 0
    assert np.isfinite(mixed(failed, found)[weight > 0]).all()
    np.testing.assert_allclose(stack(np.full((2, 3), np.nan), np.ones(3)), 0.5)


def test_targets_may_have_any_shape():
    log_p, weight = predictions(targets=60)
    shaped = log_p.reshape(3, 2, 6, 5)
    by_person = weight.reshape(2, 6, 5)[0]
    np.testing.assert_allclose(
        stack(shaped, by_person), stack(log_p, np.broadcast_to(by_person, (2, 6, 5)).ravel()), rtol=1e-6
    )
