"""How much of the held-out people is scored: what is announced is what is done."""

import logging
from functools import partial

import numpy as np
import pytest

from fssa_jax.config import PolicyEvaluation
from fssa_jax.evaluate import budget
from fssa_jax.evaluate.budget import amount, with_budget
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
    assert (steered / "quick" / "report" / "report.json").is_file()
    full = evaluate_workdir(steered, budget="full")
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


def test_a_reward_model_has_no_budget(finished):
    message = complaint(partial(evaluate_workdir, budget="quick"), finished[0] / "run")
    assert message == "--quick: a reward model scores everybody in seconds; leave it out"
