"""The ECE that chance gives: that of a calibrated model on as many choices."""

import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.evaluate.chance import confidences, ece_by_chance
from fssa_jax.ops.metrics import expected_calibration_error


def of_model(rng, shape, lists=False):
    """Log-probabilities of what a calibrated model's people chose, among two or three responses."""
    r = 2 * rng.normal(size=(*shape, 3 if lists else 2))
    p = np.exp(r) / np.exp(r).sum(-1, keepdims=True)
    chosen = (rng.random(shape)[..., None] > p.cumsum(-1)).sum(-1)
    own = np.take_along_axis(p, chosen[..., None], -1)[..., 0]
    others = np.where(np.arange(p.shape[-1]) == chosen[..., None], 0, p).max(-1)
    return np.log(own), np.log(others) if lists else None


@pytest.mark.parametrize("people", [20, 400])
def test_a_calibrated_model_has_the_ece_of_chance(people):
    rng = np.random.default_rng(0)
    shape, weight = (people, 12), np.ones((people, 12))
    found, chance = [], []
    for _ in range(30):
        log_p, _ = of_model(rng, shape)
        found.append(float(expected_calibration_error(jnp.asarray(np.exp(log_p), jnp.float32))))
        chance.append(ece_by_chance([confidences(log_p, None)], weight, rng))
    assert np.mean(chance) == pytest.approx(np.mean(found), rel=0.15)
    assert (np.mean(chance) > 0.02) == (people == 20)


def test_lists_and_several_contexts_too():
    """Three contexts of the same targets: what was chosen is the same, so averaging over them hides nothing."""
    rng = np.random.default_rng(1)
    log_p, best = of_model(rng, (30, 8), lists=True)
    weight = np.ones((30, 8))
    once = [ece_by_chance([confidences(log_p, best)], weight, rng) for _ in range(50)]
    thrice = [ece_by_chance([confidences(log_p, best)] * 3, weight, rng) for _ in range(50)]
    assert np.mean(thrice) == pytest.approx(np.mean(once), rel=0.15)
    confidence, place, expected = confidences(log_p, best)
    np.testing.assert_allclose(confidence, np.exp(np.maximum(log_p, best)))
    np.testing.assert_array_equal(place, confidence)
    assert expected.all()


def test_padding_does_not_count():
    rng = np.random.default_rng(2)
    given = confidences(np.log(np.array([[0.9, 0.5]])), None)
    assert ece_by_chance([given], np.array([[0.0, 0.0]]), rng) == 0
    alone = {round(ece_by_chance([given], np.array([[1.0, 0.0]]), rng), 6) for _ in range(50)}
    assert alone == {0.1, 0.9}
