"""The clean protocol: who is scored, what the series say, and against what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, RewardModel, SetEncoder
from fssa_jax.config import Evaluation, Synthetic
from fssa_jax.data.build import synthetic_dataset
from fssa_jax.data.dataset import Split, make_table
from fssa_jax.evaluate.episodes import eligible_users, episodes_of, evaluation_episodes, first_users
from fssa_jax.evaluate.evaluate import _controls, evaluate
from fssa_jax.evaluate.latent import drift, latent_health
from fssa_jax.evaluate.warnings import collapse_warnings, limit_warnings, report_warnings, steering_warnings
from fssa_jax.tasks.reward_predictor import reward_predictor
from tests.mistakes import complaint

SETTINGS = Evaluation(k=(0, 1, 3), draws=2, samples=1, bootstrap=200, shuffles=2)
ENCODER = SetEncoder(width=8, latent_dim=4, heads=2)


@pytest.fixture(scope="module")
def dataset():
    return synthetic_dataset(Synthetic(train_users=2, eval_users=400), context=3, targets=20)


def trained(dataset, encoder=ENCODER, **model):
    model = RewardModel(encoder=encoder, width=8, groups=2, **model)
    table = jax.tree.map(jnp.asarray, dataset.splits["test"].table)
    episode = evaluation_episodes(0, 0, table, jnp.arange(2), max_context=3)
    variables = model.init(jax.random.key(0), episode, jnp.asarray(dataset.features))
    return reward_predictor(model, jnp.asarray(dataset.features), SETTINGS.samples)(variables)


@pytest.fixture(scope="module")
def report(dataset):
    people = dataset.splits["test"]
    others = {"population": trained(dataset, latent="none"), "specialist": trained(dataset, latent="group")}
    return evaluate(trained(dataset), people, dataset, SETTINGS, others=others).report


def test_the_bayes_series_is_the_closed_form(report):
    """acc(k) = 1 − 2^−(k+2), NLL(k) = ½ · 2^−k · ln 2, S(k) = 1 − 2^−k."""
    for k in SETTINGS.k:
        assert report["bayes"][str(k)]["mean"] == pytest.approx(1 - 2.0 ** -(k + 2), abs=0.015)
        assert report["bayes_nll"][str(k)]["mean"] == pytest.approx(0.5 * 2.0**-k * np.log(2), abs=0.02)
        assert report["bayes_steering"][str(k)]["mean"] == pytest.approx(1 - 2.0**-k, abs=0.05)
        assert report["bayes_ece"][str(k)]["mean"] < 0.02


def test_every_series_has_an_interval_around_its_mean(report):
    names = {"accuracy", "nll", "ece", "steering", "control", "scrambled", "population", "specialist", "bayes"}
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
    assert limit_warnings(leaky)[0].startswith("S is 10.0 points above the Bayes limit at k = 1")


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


def test_the_gain_of_choices_is_that_over_no_choices(report):
    for name, series in (("choices_gain", "accuracy"), ("control_choices_gain", "control")):
        for k in SETTINGS.k:
            expected = report[series][str(k)]["mean"] - report["accuracy"]["0"]["mean"]
            assert report[name][str(k)]["mean"] == pytest.approx(expected, abs=1e-6)
    assert report["choices_gain"]["0"] == {"mean": 0, "low": 0, "high": 0}


def test_groups_are_scored_apart_too(report):
    """Their accuracies are those of everybody, taken apart."""
    assert len(report["by_group"]) == 2
    for name in ("accuracy", "population", "specialist"):
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
        hits.append((model.predict(episodes, (3,)).log_p[0] > np.log(0.5)).mean())
    assert report["accuracy"]["3"]["mean"] == pytest.approx(np.mean(hits), abs=1e-3)


def test_a_group_without_training_users_has_no_specialist(dataset):
    train = dataset.splits["train"]
    only_0 = Split(train.users[:1], jax.tree.map(lambda x: x[:1], train.table))
    half = dataclasses.replace(dataset, splits={**dataset.splits, "train": only_0})
    specialist = trained(dataset, latent="group")
    report = evaluate(
        trained(dataset), dataset.splits["test"], half, SETTINGS, others={"specialist": specialist}
    ).report
    assert report["users"]["without_specialist"] == 200
    table = jax.tree.map(jnp.asarray, dataset.splits["test"].table)
    episodes = evaluation_episodes(0, 0, table, jnp.arange(0, 400, 2), max_context=3)
    log_p = specialist.predict(episodes, (0,)).log_p
    assert report["specialist"]["0"]["mean"] == pytest.approx((log_p > np.log(0.5)).mean(), abs=1e-3)


def test_rows_with_both_texts_unseen_are_scored_apart(dataset):
    table = dataset.splits["test"].table
    count = np.asarray(table.count).copy()
    count[:, 1] = 10  # training shows the first ten targets of everybody
    seen = Split(dataset.splits["test"].users, dataclasses.replace(table, count=count))
    known = dataclasses.replace(dataset, splits={**dataset.splits, "train": seen})
    others = {"population": trained(dataset, latent="none")}
    report = evaluate(trained(dataset), dataset.splits["test"], known, SETTINGS, others=others).report
    assert report["targets"] == {"rows": 8000, "unseen": 4000}
    assert {"accuracy_unseen", "population_unseen"} <= set(report)


def test_users_without_enough_choices_are_left_out_by_name():
    ids = np.arange(6)
    short, long, no_targets = ((ids[:2], ids[:2]), (ids, ids)), ((ids, ids), (ids, ids)), ((ids, ids), (ids[:0],) * 2)
    split = Split(
        ["short", "long", "no targets"],
        make_table([[np.stack(p, -1) for p in pools] for pools in (short, long, no_targets)], [0] * 3),
    )
    users, left_out = eligible_users(split, 5)
    assert users.tolist() == [1]
    assert left_out == ["short", "no targets"]
    assert complaint(eligible_users, split, 7).startswith("config.evaluate.k: 7 is larger than any context; ")


@pytest.mark.parametrize("within", [False, True])
def test_nobody_keeps_their_own_context_in_the_control(dataset, within):
    group = np.array([0, 0, 0, 1, 1, 1, 1])
    table = dataclasses.replace(jax.tree.map(lambda x: np.asarray(x)[:7], dataset.splits["test"].table), group=group)
    settings = dataclasses.replace(SETTINGS, shuffle_within_group=within)
    split = Split(["?"] * 7, table)
    own = episodes_of(split, np.arange(7), 0, 3)
    for shuffled in _controls([own], split, np.arange(7), settings, seed=0)["control"]:
        np.testing.assert_array_equal(shuffled.targets.chosen, own.targets.chosen)
        same = np.asarray(shuffled.context.chosen)[:, None] == np.asarray(own.context.chosen)[None]
        user, owner = np.nonzero(same.all(-1))
        assert sorted(owner) == user.tolist() == list(range(7))
        assert (owner != np.arange(7)).all()
        if within:
            np.testing.assert_array_equal(group[owner], group)


def test_a_dead_latent_has_no_active_units():
    rng = np.random.default_rng(0)
    alive = latent_health(rng.normal(size=(50, 3)), np.ones((50, 3)))
    assert (alive["units"], alive["active_units"], alive["active_share"], alive["kl"]) == (3, 3, 1.0, 3.0)
    dead = latent_health(np.zeros((50, 3)), np.zeros((50, 3)))
    assert (dead["active_units"], dead["active_share"]) == (0, 0.0)
    half = latent_health(rng.normal(size=(50, 4)) * [1, 1, 0.05, 0.05], None)
    assert (half["active_units"], half["active_share"]) == (2, 0.5)
    assert "kl" not in half
    assert [w.split(":")[0] for w in collapse_warnings(dead, 0.0)] == ["latent collapse", "context ignored"]
    assert collapse_warnings(alive, 0.1) == []


def test_the_first_users_are_of_every_group():
    """Sorted names put one label first: a cut must not leave the others out."""
    table = make_table([[np.array([[0, 1]])] * 2] * 30, [0] * 20 + [1] * 10)
    users = first_users(Split([""] * 30, table), np.arange(30), 8)
    assert users.tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert first_users(Split([""] * 30, table), np.arange(30), None).tolist() == list(range(30))


def test_a_control_that_steers_is_said():
    cell = {"mean": 0.2, "low": 0.1, "high": 0.3}
    report = {"k": [0, 3], "control_steering": {"3": cell}, "scrambled_steering": {"3": cell | {"low": -0.1}}}
    [warning] = steering_warnings(report)
    assert warning.startswith("S = 20.0 at k = 3 with another person's context")
    assert steering_warnings({"k": [0, 3], "control_steering": None, "scrambled_steering": None}) == []


def test_a_reward_model_that_counts_choices_is_told_from_one_that_reads_them(dataset):
    """Choices that contradict each other say nothing, however many they are; the published sum over them grows."""
    episodes = episodes_of(dataset.splits["test"], np.arange(40), 0, 3)
    found = {}
    for name, encoder in {
        "bayes": BayesEncoder(),
        "kinds": BayesEncoder(support=64),
        "sum": SetEncoder(width=8, latent_dim=4, aggregation="sum", prior_choice=False),
    }.items():
        found[name] = drift(trained(dataset, encoder), episodes, SETTINGS.k, 0, dataset.truth, undecided=False)
    assert found["bayes"]["counted"] == pytest.approx(0, abs=1e-5)
    assert found["kinds"]["counted"] < 0.1  # not 0: a contradiction is likelier of those who hardly mind
    norms = found["sum"]["norm_contradicted"]
    assert norms["3"] > 1.5 * norms["1"] > 1.5 * norms["0"]
    [warning] = steering_warnings({"k": [0, 1, 3], "latent": found["sum"]})
    assert "counts choices instead of reading them" in warning
    for out in found.values():
        assert set(out["norm"]) == set(out["norm_scrambled"]) == set(out["norm_contradicted"]) == {"0", "1", "3"}
        assert out["norm"]["0"] == pytest.approx(out["norm_scrambled"]["0"])
    # The exact posterior moves farther the more of a person's choices it knows, whatever the encoder.
    moved = found["sum"]["bayes"]
    assert moved["0"] == pytest.approx(0, abs=1e-6)
    assert 0 < moved["1"] < moved["3"]


def test_undecided_is_no_news_beside_a_population_model(dataset):
    """And where nothing moves z there is no share to tell."""
    episodes = episodes_of(dataset.splits["test"], np.arange(40), 0, 3)
    model = trained(dataset)
    assert "counted" not in drift(model, episodes, SETTINGS.k, 0, None, undecided=True)
    still = dataclasses.replace(model, infer=lambda e: jax.tree.map(jnp.zeros_like, model.infer(e)))
    found = drift(still, episodes, SETTINGS.k, 0, None, undecided=False)
    assert "counted" not in found
    assert "bayes" not in found
    assert not steering_warnings({"k": [0, 3], "latent": found})


def test_all_that_is_wrong_with_a_report_is_said_once(report):
    """A model from random init reads nothing wrong; of few people, unknown texts or a dead latent a line each."""
    assert [w for w in report_warnings(report, texts_alone=False) if not w.startswith("S = ")] == []
    few = report | {"users": {"scored": 3}}
    assert sum("only 3 people" in w for w in report_warnings(few, texts_alone=False)) == 1
    new = report | {"targets": {"rows": 10, "unseen": 6}}
    [unknown] = [w for w in report_warnings(new, texts_alone=True) if "never judged" in w]
    assert unknown.startswith("60% of the choices")
    assert not any("never judged" in w for w in report_warnings(new, texts_alone=False))
    dead = report | {"latent": latent_health(np.zeros((5, 3)), None) | {"context_effect": 0.0}}
    said = [w.split(":")[0] for w in report_warnings(dead, texts_alone=False)]
    assert {"latent collapse", "context ignored"} <= set(said)
    counts = report | {"latent": report["latent"] | {"counted": 0.7}}
    assert any("move z 70 % as far" in w for w in report_warnings(counts, texts_alone=False))
