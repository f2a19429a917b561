"""The clean protocol: who is scored, what the series say, and against what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import RewardModel, SetEncoder
from fssa_jax.config.reward import DataConfig, EvaluateConfig
from fssa_jax.data.build import synthetic_dataset
from fssa_jax.data.dataset import Split, make_table
from fssa_jax.evaluate.evaluate import (
    Trained,
    _shuffle,
    collapse_warnings,
    eligible_users,
    evaluate,
    first_users,
    latent_health,
    limit_warnings,
    reward_predictor,
)
from fssa_jax.evaluate.predictor import evaluation_episodes
from tests.mistakes import complaint

SETTINGS = EvaluateConfig(k=(0, 1, 3), draws=2, samples=1, bootstrap=200, shuffles=2)
ENCODER = SetEncoder(width=8, latent_dim=4, heads=2)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(DataConfig(source="synthetic", train_users=2, eval_users=400), context=3, targets=20)


def trained(dataset, **model):
    model = RewardModel(encoder=ENCODER, width=8, groups=2, **model)
    table = jax.tree.map(jnp.asarray, dataset.splits["test"].table)
    episode = evaluation_episodes(0, 0, table, jnp.arange(2), max_context=3)
    variables = model.init(jax.random.key(0), episode, jnp.asarray(dataset.features))
    return reward_predictor(Trained(model, variables), dataset, SETTINGS.samples)


@pytest.fixture(scope="module")
def report(dataset):
    people = dataset.splits["test"]
    population, oracle = trained(dataset, latent="none"), trained(dataset, latent="group")
    return evaluate(trained(dataset), people, dataset, SETTINGS, population=population, oracle=oracle).report


def test_the_bayes_series_is_the_closed_form(report):
    """acc(k) = 1 − 2^−(k+2), NLL(k) = ½ · 2^−k · ln 2, S(k) = 1 − 2^−k."""
    for k in SETTINGS.k:
        assert report["bayes"][str(k)]["mean"] == pytest.approx(1 - 2.0 ** -(k + 2), abs=0.015)
        assert report["bayes_nll"][str(k)]["mean"] == pytest.approx(0.5 * 2.0**-k * np.log(2), abs=0.02)
        assert report["bayes_steering"][str(k)]["mean"] == pytest.approx(1 - 2.0**-k, abs=0.05)
        assert report["bayes_ece"][str(k)]["mean"] < 0.02


def test_every_series_has_an_interval_around_its_mean(report):
    names = {"accuracy", "nll", "ece", "steering", "control", "population", "oracle", "bayes"}
    assert names <= set(report)
    for name in names:
        for k in SETTINGS.k:
            cell = report[name][str(k)]
            # ECE is biased upwards by resampling: its interval may lie above the mean.
            assert cell["low"] <= cell["high"], name
            assert name == "ece" or cell["low"] - 1e-6 <= cell["mean"] <= cell["high"] + 1e-6, name


def test_steering_beside_the_limit_is_a_difference_within_people(report):
    width = {"steering_gap": [], "steering": []}
    for k in SETTINGS.k:
        gap, own, limit = (report[name][str(k)] for name in ("steering_gap", "steering", "bayes_steering"))
        assert gap["mean"] == pytest.approx(own["mean"] - limit["mean"], abs=1e-6)
        assert gap["low"] <= gap["mean"] <= gap["high"]
        share = report["share_of_bayes_steering"][str(k)]
        assert share is None if limit["mean"] <= 0.01 else share == pytest.approx(own["mean"] / limit["mean"])
        width["steering_gap"].append(gap["high"] - gap["low"])
        width["steering"].append(own["high"] - own["low"] + limit["high"] - limit["low"])
    assert sum(width["steering_gap"]) <= sum(width["steering"]) + 1e-6
    assert limit_warnings(report) == []
    leaky = {"steering_gap": {"1": {"mean": 0.1, "low": 0.05, "high": 0.15}}}
    assert limit_warnings(leaky)[0].startswith("S is 10.0 points above that of the Bayes limit at k = 1")


def test_gains_are_differences_within_people(report):
    """Their means are differences of means; paired, their intervals are narrower than those would be."""
    for name, series in (("gain", "accuracy"), ("control_gain", "control")):
        for k in SETTINGS.k:
            own, population = report[series][str(k)], report["population"][str(k)]
            gain = report[name][str(k)]
            assert gain["mean"] == pytest.approx(own["mean"] - population["mean"], abs=1e-6)
            assert gain["low"] <= gain["mean"] <= gain["high"]
            widths = [cell["high"] - cell["low"] for cell in (gain, own, population)]
            assert widths[0] <= widths[1] + widths[2]


def test_groups_are_scored_apart_too(report):
    """Their accuracies are those of everybody, taken apart."""
    assert len(report["by_group"]) == 2
    for name in ("accuracy", "population", "oracle"):
        parts = [series[name]["1"]["mean"] for series in report["by_group"].values()]
        assert min(parts) - 1e-6 <= report[name]["1"]["mean"] <= max(parts) + 1e-6
    alone = [series["population"]["1"]["mean"] for series in report["by_group"].values()]
    assert alone[0] != alone[1]


def test_the_population_does_not_read_the_context(report):
    assert report["population"]["0"] == report["population"]["3"]
    assert report["population_steering"]["3"]["mean"] == pytest.approx(0, abs=1e-6)


def test_accuracy_is_the_mean_over_users_and_draws(dataset, report):
    model = trained(dataset)
    table = jax.tree.map(jnp.asarray, dataset.splits["test"].table)
    hits = []
    for draw in range(SETTINGS.draws):
        episodes = evaluation_episodes(0, draw, table, jnp.arange(400), max_context=3)
        log_p, _, _ = model.predict(episodes, (3,))
        hits.append((log_p[0] > np.log(0.5)).mean())
    assert report["accuracy"]["3"]["mean"] == pytest.approx(np.mean(hits), abs=1e-3)


def test_a_group_without_training_users_has_no_specialist(dataset):
    train = dataset.splits["train"]
    only_0 = Split(train.users[:1], jax.tree.map(lambda x: x[:1], train.table))
    half = dataclasses.replace(dataset, splits={**dataset.splits, "train": only_0})
    oracle = trained(dataset, latent="group")
    report = evaluate(trained(dataset), dataset.splits["test"], half, SETTINGS, oracle=oracle).report
    assert report["users"]["without_oracle"] == 200
    table = jax.tree.map(jnp.asarray, dataset.splits["test"].table)
    episodes = evaluation_episodes(0, 0, table, jnp.arange(0, 400, 2), max_context=3)
    log_p, _, _ = oracle.predict(episodes, (0,))
    assert report["oracle"]["0"]["mean"] == pytest.approx((log_p > np.log(0.5)).mean(), abs=1e-3)


def test_rows_with_both_texts_unseen_are_scored_apart(dataset):
    table = dataset.splits["test"].table
    count = np.asarray(table.count).copy()
    count[:, 1] = 10  # training shows the first ten targets of everybody
    seen = Split(dataset.splits["test"].users, dataclasses.replace(table, count=count))
    known = dataclasses.replace(dataset, splits={**dataset.splits, "train": seen})
    population = trained(dataset, latent="none")
    report = evaluate(trained(dataset), dataset.splits["test"], known, SETTINGS, population=population).report
    assert report["targets"] == {"rows": 8000, "unseen": 4000}
    assert {"accuracy_unseen", "population_unseen"} <= set(report)


def test_users_without_enough_choices_are_left_out_by_name():
    ids = np.arange(6)
    short, long, no_targets = ((ids[:2], ids[:2]), (ids, ids)), ((ids, ids), (ids, ids)), ((ids, ids), (ids[:0],) * 2)
    split = Split(["short", "long", "no targets"], make_table([list(p) for p in (short, long, no_targets)], [0] * 3))
    users, left_out = eligible_users(split, 5)
    assert users.tolist() == [1]
    assert left_out == ["short", "no targets"]
    assert complaint(eligible_users, split, 7).startswith("config.evaluate.k: 7 is larger than any context; ")


@pytest.mark.parametrize("within", [False, True])
def test_nobody_keeps_their_own_context_in_the_control(dataset, within):
    group = np.array([0, 0, 0, 1, 1, 1, 1])
    table = dataclasses.replace(jax.tree.map(lambda x: np.asarray(x)[:7], dataset.splits["test"].table), group=group)
    settings = dataclasses.replace(SETTINGS, shuffle_within_group=within)
    owner = _shuffle(0, Split(["?"] * 7, table), np.arange(7), settings)
    assert sorted(owner) == list(range(7))
    assert (owner != np.arange(7)).all()
    if within:
        np.testing.assert_array_equal(group[owner], group)


def test_a_dead_latent_has_no_active_units():
    rng = np.random.default_rng(0)
    alive = latent_health(rng.normal(size=(50, 3)), np.ones((50, 3)))
    assert (alive["units"], alive["active_units"], alive["kl"]) == (3, 3, 3.0)
    dead = latent_health(np.zeros((50, 3)), np.zeros((50, 3)))
    assert dead["active_units"] == 0
    assert [w.split(":")[0] for w in collapse_warnings(dead, 0.0)] == ["latent collapse", "context ignored"]
    assert collapse_warnings(alive, 0.1) == []


def test_the_first_users_are_of_every_group():
    """Sorted names put one label first: a cut must not leave the others out."""
    table = make_table([[(np.array([0]), np.array([1]))] * 2] * 30, [0] * 20 + [1] * 10)
    users = first_users(Split([""] * 30, table), np.arange(30), 8)
    assert users.tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert first_users(Split([""] * 30, table), np.arange(30), None).tolist() == list(range(30))
