"""What is true of responses to people of `styles`, whose wishes are known."""

import numpy as np

from fssa_jax.data.benchmarks import styles
from fssa_jax.evaluate.simulated_scores import best_reward, movement, styles_of, true_reward
from fssa_jax.lm.writer import Samples


def test_movement_and_reward_of_known_styles():
    weights = np.array([[1, 0, -1, 0, 0], [-1, 0, 1, 0, 0]], np.float32)
    style = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]])
    out = movement(style, weights)
    assert out[0] == 1
    assert out[2] == 1
    assert np.isnan(out[1])
    np.testing.assert_allclose(true_reward(styles.PEOPLE, style, weights), styles.PEOPLE.scale * np.ones(2))


def test_styles_are_read_back_from_every_text():
    texts, style_of, _ = styles.texts()
    for i in range(0, len(texts), 7):
        style, well = styles.style_of_text(*texts[i])
        assert well
        np.testing.assert_array_equal(style, style_of[i])
        broken, well = styles.style_of_text(texts[i][0], texts[i][1] + " zzz")
        assert not well
        np.testing.assert_array_equal(broken, style_of[i])
    prompt, response = texts[0]
    other = next(p for p, _ in texts if "chess" in p)
    assert not styles.style_of_text(other, response)[1]  # another topic's advice
    samples = Samples([prompt], [response], [[1]], [[2]], [None])
    assert styles_of(styles.PEOPLE, samples)[1].all()


def test_the_best_that_can_be_written_follows_from_what_is_known():
    """Nothing is gained from the prior's mean alone; the whole reward of a likely style at a low temperature."""
    weights, _ = styles.PEOPLE.every()
    known = np.eye(len(weights))
    most = styles.PEOPLE.scale * np.abs(weights).sum(1) / 2
    np.testing.assert_allclose(best_reward(styles.PEOPLE, known, weights, 0.05), most, atol=1e-4)
    flat = np.broadcast_to(np.full(len(weights), 1 / len(weights)), known.shape)
    np.testing.assert_allclose(best_reward(styles.PEOPLE, flat, weights, 0.5), 0, atol=1e-4)
    # One attribute: weight 1, both styles: tanh of half the logit times half the scale.
    one = np.flatnonzero(np.abs(weights).sum(1) == 1)[:1]
    expected = styles.PEOPLE.scale / 2 * np.tanh(styles.PEOPLE.scale / 2 / 0.5)
    np.testing.assert_allclose(best_reward(styles.PEOPLE, known[one], weights[one], 0.5), expected, rtol=1e-5)
