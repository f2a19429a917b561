"""Series of a report: who is drawn together, and what their intervals are of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Evaluation
from fssa_jax.evaluate.scores import Scores
from fssa_jax.ops import metrics
from fssa_jax.tasks.predictor import Predictions
from fssa_jax.types import Comparisons

SETTINGS = Evaluation(k=(0,), bootstrap=200)


def predictions(log_p):
    """Predictions of one draw at one context size, without latents."""
    return [Predictions(log_p[None], np.zeros((1, len(log_p), 0)), np.zeros((1, len(log_p), 0)), {})]


def scored(chosen, rejected, mask, log_p):
    """The report of one predictor."""
    targets = Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), jnp.asarray(mask))
    score = Scores((0,), mask, targets, SETTINGS, seed=0)
    score.add("", predictions(log_p))
    return score.report


def test_a_bias_for_texts_steers_nobody_and_its_interval_says_so():
    """Two people of opposite wishes judge the same pairs; who likes each first text gains of one what the other
    loses. Drawn apart, people would give S an interval where there is nothing to be uncertain of."""
    rng = np.random.default_rng(0)
    first, second = (
        np.repeat(np.arange(400).reshape(20, 20), 2, axis=0),
        np.repeat(np.arange(400, 800).reshape(20, 20), 2, 0),
    )
    flip = np.repeat(rng.random((20, 20)) < 0.5, 2, axis=0) ^ (np.arange(40)[:, None] % 2 == 1)
    chosen, rejected = np.where(flip, second, first), np.where(flip, first, second)
    # Their order is another for each: what counts is which pairs they judge.
    for user in range(40):
        order = rng.permutation(20)
        chosen[user], rejected[user], flip[user] = chosen[user, order], rejected[user, order], flip[user, order]
    likes_first = np.log(np.where(flip, 0.2, 0.8)).astype(np.float32)
    cell = scored(chosen, rejected, np.ones((40, 20), bool), likes_first)["steering"]["0"]
    np.testing.assert_allclose([cell["mean"], cell["low"], cell["high"]], 0, atol=1e-6)


def test_the_last_gain_is_paired_within_people():
    """A person gains what their context adds: the interval has no part of how different people are."""
    p = np.random.default_rng(0).random((40, 12)) < np.linspace(0.1, 0.9, 40)[:, None]
    hits = np.stack([p, p, p])
    hits[2, :, 0], hits[1, :, 0], hits[0, :, 0] = True, False, False  # the last k gets one more of twelve right
    log_p = np.where(hits, np.log(0.8), np.log(0.2)).astype(np.float32)
    ids, mask = jnp.zeros((40, 12), int), np.ones((40, 12), bool)
    targets = Comparisons(ids, ids + 1, jnp.asarray(mask))
    score = Scores((0, 3, 5), mask, targets, dataclasses.replace(SETTINGS, k=(0, 3, 5)), seed=0)
    score.add("", [Predictions(log_p, np.zeros((3, 40, 0)), np.zeros((3, 40, 0)), {})])
    score.add_last_gain()
    cell = score.report["last_gain"]
    np.testing.assert_allclose([cell["mean"], cell["low"], cell["high"]], 1 / 12, atol=1e-6)


def test_only_choices_between_two_steer():
    """Of one among several there are no two sides that people take."""
    first = np.broadcast_to(np.arange(10), (30, 10))
    flip = np.random.default_rng(0).random((30, 10)) < 0.5
    log_p, mask = np.full((30, 10), np.log(0.6), np.float32), jnp.ones((30, 10), bool)
    pairs = Comparisons(jnp.asarray(np.where(flip, first, first + 10)), jnp.asarray(first + 10 * flip), mask)
    lists = dataclasses.replace(pairs, others=jnp.asarray(first + 20)[..., None], listed=mask[..., None])
    steering = []
    for targets in (pairs, lists):
        score = Scores((0,), np.asarray(mask), targets, SETTINGS, seed=0)
        score.add("", predictions(log_p))
        steering.append(score.report["steering"])
    assert steering[0]["0"]["mean"] == 1
    assert steering[1] is None


def test_people_who_share_no_list_of_targets_are_drawn_one_by_one():
    rng = np.random.default_rng(1)
    ids = np.arange(600).reshape(2, 30, 10)
    mask = np.arange(10) < rng.integers(3, 11, (30, 1))
    ids[:, 0] = ids[:, 1]  # the same but for one that is padding to the first
    mask[0], mask[1] = np.arange(10) < 4, np.arange(10) < 5
    log_p = np.log(rng.uniform(0.1, 0.9, (30, 10))).astype(np.float32)
    cell = scored(ids[0], ids[1], mask, log_p)["accuracy"]["0"]
    weights = np.asarray(metrics.bootstrap_weights(jax.random.key(0), 30, SETTINGS.bootstrap))
    by_user = (np.asarray(metrics.preference_accuracy(jnp.asarray(log_p))) * mask).sum(1) / mask.sum(1)
    low, high = np.percentile(weights @ by_user / 30, [2.5, 97.5])
    np.testing.assert_allclose([cell["low"], cell["high"]], [low, high], rtol=1e-5)
    mask[0] = mask[1]
    together = scored(ids[0], ids[1], mask, log_p)["accuracy"]["0"]
    assert (together["low"], together["high"]) != (low, high)


def test_where_everybody_judges_one_list_people_are_drawn_one_by_one_too():
    rng = np.random.default_rng(3)
    ids = np.broadcast_to(np.arange(20).reshape(2, 1, 10), (2, 30, 10))
    log_p = np.log(rng.uniform(0.1, 0.9, (30, 10))).astype(np.float32)
    cell = scored(ids[0], ids[1], np.ones((30, 10), bool), log_p)["accuracy"]["0"]
    assert cell["high"] - cell["low"] > 0.05


def test_steering_beside_another_is_paired_within_people():
    """What two predictors have in common, the luck of who was drawn, favours neither: of equals nothing is left."""
    rng = np.random.default_rng(4)
    ids = np.broadcast_to(np.arange(20).reshape(2, 1, 10), (2, 30, 10))
    flip = rng.random((30, 10)) < 0.5
    chosen, rejected = np.where(flip, ids[1], ids[0]), np.where(flip, ids[0], ids[1])
    mask, log_p = np.ones((30, 10), bool), np.log(rng.uniform(0.1, 0.9, (1, 1, 30, 10))).astype(np.float32)
    better = np.log(np.where(rng.random(log_p.shape) < 0.1, 0.9, np.exp(log_p))).astype(np.float32)
    targets = Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), jnp.asarray(mask))
    width = {}
    for name, other in (("equal", log_p), ("better", better)):
        score = Scores((0,), mask, targets, SETTINGS, seed=0)
        score.add("", predictions(log_p[0, 0]))
        score.add("bayes", predictions(other[0, 0]))
        score.add_steering_gap("bayes")
        cells = (score.report[series]["0"] for series in ("steering_gap", "steering", "bayes_steering"))
        width[name] = [cell["high"] - cell["low"] for cell in cells]
    assert width["equal"][0] < 1e-6 < 0.05 < width["equal"][1]
    assert 0 < width["better"][0] < 0.7 * sum(width["better"][1:])


def test_settings_of_the_bootstrap_count():
    rng = np.random.default_rng(2)
    ids, mask = np.arange(200).reshape(2, 10, 10), np.ones((10, 10), bool)
    log_p = np.log(rng.uniform(0.1, 0.9, (10, 10))).astype(np.float32)
    many = dataclasses.replace(SETTINGS, bootstrap=500)
    targets = Comparisons(jnp.asarray(ids[0]), jnp.asarray(ids[1]), jnp.asarray(mask))
    cells = []
    for settings in (SETTINGS, many):
        score = Scores((0,), mask, targets, settings, seed=0)
        score.add("", predictions(log_p))
        cells.append(score.report["accuracy"]["0"])
    assert cells[0]["mean"] == cells[1]["mean"]
    assert cells[0]["low"] != cells[1]["low"]


def test_who_is_left_out_of_a_score_does_not_make_a_pair_contested():
    """A predictor that ignores people has S = 0 also where it is asked about some of them only."""
    pairs = np.tile(np.arange(6)[None], (4, 1))
    flip = np.array([[False], [False], [True], [True]]) & np.ones((4, 6), bool)
    chosen, rejected = np.where(flip, pairs + 6, pairs), np.where(flip, pairs, pairs + 6)
    mask = np.ones((4, 6), bool)
    likes_first = np.log(np.where(flip, 0.3, 0.7)).astype(np.float32)
    targets = Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), jnp.asarray(mask))
    score = Scores((0,), mask, targets, SETTINGS, seed=0)
    score.add("", predictions(likes_first))
    some = mask & np.array([[True], [True], [True], [False]])
    score.add("specialist", predictions(likes_first), some)
    np.testing.assert_allclose(score.report["specialist_steering"]["0"]["mean"], 0, atol=1e-6)
    one_side = mask & np.array([[True], [True], [False], [False]])
    score.add("population", predictions(likes_first), one_side)
    assert score.report["population_steering"] is None


def test_scores_are_means_over_all_draws_of_contexts():
    """One draw that is right and one that is wrong."""
    ids, mask = np.arange(200).reshape(2, 10, 10), np.ones((10, 10), bool)
    targets = Comparisons(jnp.asarray(ids[0]), jnp.asarray(ids[1]), jnp.asarray(mask))
    score = Scores((0,), mask, targets, SETTINGS, seed=0)
    right, wrong = (np.full((10, 10), np.log(p), np.float32) for p in (0.9, 0.2))
    score.add("", predictions(right) + predictions(wrong))
    assert score.report["accuracy"]["0"]["mean"] == 0.5
    np.testing.assert_allclose(score.report["nll"]["0"]["mean"], -np.log(0.9 * 0.2) / 2, rtol=1e-6)
    np.testing.assert_allclose(score.report["ece"]["0"]["mean"], (0.1 + 0.8) / 2, rtol=1e-5)
