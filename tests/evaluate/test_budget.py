"""How much of the held-out people is scored: what is announced is what is done."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fssa_jax.config import PolicyEvaluation
from fssa_jax.evaluate import budget
from fssa_jax.evaluate.budget import amount, interval_of, with_budget
from fssa_jax.evaluate.evaluate import evaluate
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.writer import Writer
from fssa_jax.tasks.predictor import Predictor
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


def test_as_many_sequences_are_scored_as_announced(work, monkeypatch):
    split = work.dataset.splits["test"]
    settings = PolicyEvaluation(k=(0, 3), draws=2, shuffles=3, bootstrap=10, users=2, targets=3)
    seen, predict = [], Predictor.predict

    def counted(self, episodes, ks):
        seen.append(episodes.targets.chosen.size * 2 * (len(ks) if self.reads else 1))
        return predict(self, episodes, ks)

    monkeypatch.setattr(Predictor, "predict", counted)
    predictors = {name: work.task.predictor(name, split)(work.trained(name)[0]) for name in work.task.names}
    main = predictors.pop("main")
    evaluate(main, split, work.dataset, settings, others=predictors, max_users=2, max_targets=3)
    most = int(np.asarray(split.table.count)[:, 1].max())
    assert sum(seen) == amount(settings, len(split.users), most, baselines=len(predictors))[0]


def test_a_quick_evaluation_is_a_part_and_a_full_one_is_all(steered, work, monkeypatch, caplog):
    monkeypatch.setattr(budget, "_QUICK_USERS", 1)
    monkeypatch.setattr(budget, "_QUICK_PEOPLE", 2)
    responses, write = [], Writer.__call__

    def counted(self, prompts, *args, **kwargs):
        responses.append(len(prompts))
        return write(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Writer, "__call__", counted)
    with caplog.at_level(logging.INFO):
        quick = evaluate_workdir(steered, budget="quick")
    assert (quick["users"]["scored"], quick["k"]) == (1, [0, 3])
    assert (quick["budget"], quick["generation"]["people"]) == ("quick", 2)
    assert "best_of" not in quick["generation"]
    assert any("a quick evaluation" in warning for warning in quick["warnings"])
    assert "in_context" not in quick
    blended = 5  # points between two people, on one prompt
    announced = next(line for line in caplog.messages if "responses written" in line)
    assert f"{sum(responses) - blended} responses written" in announced
    assert quick["pace"]["seconds_per_response"] > 0
    assert (steered / "quick" / "report" / "report.json").is_file()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        full = evaluate_workdir(steered, budget="full")
    assert any("by the pace of the last evaluation" in line for line in caplog.messages)
    assert not any("a quick evaluation" in warning for warning in full["warnings"])
    split = work.dataset.splits["test"]
    assert full["users"]["scored"] + len(full["users"]["left_out"]) == len(split.users)
    assert full["targets"]["rows"] == np.asarray(split.table.count)[:, 1].sum()
    assert full["generation"]["people"] == len(split.users) // 2 * 2


def test_a_budget_changes_nothing_that_nobody_asked_for():
    settings = PolicyEvaluation(users=3, targets=2)
    assert with_budget(settings, "configured", 100, 9) is settings
    quick = with_budget(settings, "quick", 100, 9)
    assert (quick.users, quick.targets) == (3, 2)
    silent = PolicyEvaluation()
    silent.generate.people = 0
    assert with_budget(silent, "full", 100, 9).generate.people == 0


@pytest.mark.parametrize(("budget", "flag"), [("quick", "--quick"), (5.0, "--interval")])
def test_a_reward_model_has_no_budget(finished, budget, flag):
    message = complaint(partial(evaluate_workdir, budget=budget), finished[0] / "run")
    assert message == f"{flag}: a reward model scores everybody in seconds; leave it out"


@pytest.mark.parametrize("points", [3.0, 8.0, 40.0])
def test_an_interval_takes_no_more_than_it_needs(points):
    settings = with_budget(PolicyEvaluation(), points, 5000, 20)
    of_score, of_movement = interval_of(settings, 5000, 20)
    assert max(of_score, of_movement) <= points
    fewer = replace(settings, users=settings.users - 1)
    assert interval_of(fewer, 5000, 20)[0] > points
    fewer = replace(settings, generate=replace(settings.generate, people=settings.generate.people - 2))
    assert interval_of(fewer, 5000, 20)[1] > points


def test_an_interval_of_few_people_takes_more_of_each():
    settings = with_budget(PolicyEvaluation(), 8.0, 30, 9)
    assert (settings.users, settings.targets) == (30, 9)
    assert (settings.generate.people, settings.generate.prompts) == (30, 4)
    of_score, of_movement = interval_of(settings, 30, 9)
    assert of_score == pytest.approx(1.96 * 100 / np.sqrt(270))
    assert of_movement <= 8
    silent = PolicyEvaluation()
    silent.generate.people = 0
    assert with_budget(silent, 8.0, 30, 9).generate.people == 0
    assert interval_of(with_budget(silent, 8.0, 30, 9), 30, 9)[1] == np.inf


def test_the_interval_of_movement_is_that_of_shares():
    """A third of the people wants an attribute, a third does not; both shares are one half."""
    rng, moved = np.random.default_rng(0), []
    for _ in range(2000):
        found = rng.random((60, 8)) < 0.5
        moved.append((found[:20].mean(0) - found[20:40].mean(0)).mean())
    settings = PolicyEvaluation()
    settings.generate.people, settings.generate.prompts = 60, 1
    assert interval_of(settings, 60, 1)[1] == pytest.approx(196 * np.std(moved), rel=0.05)


def test_too_few_people_for_an_interval_are_told(steered, caplog):
    with caplog.at_level(logging.INFO):
        report = evaluate_workdir(steered, budget=20.0)
    assert report["budget"] == "intervals of ± 20 points"
    assert any("--interval=20: there are too few people for that; all " in line for line in caplog.messages)
