"""The evaluation of a work directory: report.json, pictures, and a self-contained report.html."""

import dataclasses
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.config import NpBtl, PolicyEvaluation, Synthetic
from fssa_jax.data.dataset import Split
from fssa_jax.errors import UserError
from fssa_jax.evaluate.budget import Budget, amount, interval_of, with_budget
from fssa_jax.evaluate.episodes import eligible_users, episodes_of
from fssa_jax.evaluate.evaluate import Evaluation, evaluate
from fssa_jax.evaluate.in_context import in_context_predictor
from fssa_jax.evaluate.latent import drift
from fssa_jax.evaluate.verdict import verdict
from fssa_jax.evaluate.warnings import report_warnings
from fssa_jax.evaluate.written import TrainedPolicy, Written, written_for
from fssa_jax.experiment.pace import Amount, expected_seconds, pace_of
from fssa_jax.experiment.reports import report_directory, source_name
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import whole_directory
from fssa_jax.models.rewards import RewardModel
from fssa_jax.report.example import write_example
from fssa_jax.report.html import render
from fssa_jax.report.pictures import Pictures, draw_choices, draw_policy, draw_reward
from fssa_jax.report.written import write_responses, written_section
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.sft import SftTask
from fssa_jax.tasks.task import MAIN, POPULATION, SPECIALIST
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

_IN_CONTEXT_TARGETS = 8


def evaluate_workdir(
    workdir: Path,
    data: str = "",
    split: str = "test",
    ks: tuple[int, ...] = (),
    base: str = "",
    budget: Budget = "configured",
) -> dict[str, Any]:
    """Evaluates a trained work directory and writes its report/ atomically. Returns the content of report.json.

    Args:
      workdir: work directory that launch.train wrote.
      data: rows of other people; all of them are scored except those in the training data, unless the budget is quick.
        Empty for a split of the workdir's data.
      split: "test" or "val".
      ks: context sizes; those of the configuration if empty.
      base: current directory of a policy's language model, if it has moved.
      budget: how much of a policy's people, targets and responses; see evaluate/budget.py.

    A report on a policy holds its pace, by which the time of the next evaluation is told.

    Raises:
      UserError: a missing or damaged work directory, a base without a policy, bad rows, k larger than any context; or a
        budget for a reward model, which scores everybody in seconds.
    """
    trained_on = Workdir.open(workdir, base)
    if isinstance(trained_on.task, SftTask):
        raise UserError(f"{workdir}: holds a language model, not a policy; its checkpoint is {workdir / 'model'}")
    work, people = trained_on.with_people(data) if data else (trained_on, trained_on.dataset.splits[split])
    if budget != "configured":
        if isinstance(work.task, RewardTask):
            name = budget if isinstance(budget, str) else "interval"
            raise UserError(f"--{name}: a reward model scores everybody in seconds; leave it out")
        if budget == "quick":  # few sequences are scored, so that states of all texts would be computed in vain
            work = _without_states(work)
    task: RewardTask | PolicyTask = work.task  # type: ignore[assignment]
    found = {name: trained_on.trained(name) for name in trained_on.task.names}
    if data:  # no specialists: other people may have other groups
        found.pop(SPECIALIST, None)
    variables = {name: of[0] for name, of in found.items() if of is not None}
    step = next(of[1] for name, of in found.items() if name == MAIN and of is not None)
    settings = dataclasses.replace(work.config.evaluate, k=ks or work.config.evaluate.k)
    planned = Amount(0, 0)
    if isinstance(task, PolicyTask):
        baselines, reads = len(variables) - 1, task.reads(MAIN)
        settings, planned = _planned(workdir, settings, budget, people, baselines, reads, everybody=bool(data))
    predictors = {name: task.predictor(name, people)(v) for name, v in variables.items()}
    begun = time.monotonic()
    result = score(task, people, predictors, settings, everybody=bool(data) and budget in ("configured", "full"))
    scored = time.monotonic() - begun
    report = result.report
    report |= {
        "step": step,
        "data": data or f"{split} split",
        "source": source_name(data) if data else "",
        "config": work.config.name,
        "seed": work.config.seed,
        "budget": budget if isinstance(budget, str) else f"intervals of ± {budget:g} points",
        "run": work.run,
    }
    written: Written | None = None
    if isinstance(task, PolicyTask) and isinstance(settings, PolicyEvaluation) and settings.generate.people:
        # What everybody shares is written as it was trained.
        strength = {name: settings.generate.strength if task.reads(name) else 1.0 for name in variables}
        policies = {
            name: TrainedPolicy(task.conditioner(name), variables[name], predictors[name], strength[name])
            for name in variables
        }
        users, _ = eligible_users(people, max(settings.k))
        written = written_for(task, people, policies, users, settings)
        report["generation"] = written.report
    if isinstance(task, PolicyTask):
        report["pace"] = pace_of(planned, scored, time.monotonic() - begun - scored)
    reward = _reward_model(task)
    texts_alone = reward is not None and bool(reward.learnt_texts) and reward.target == "none"
    if report.get("gain") and task.names != (MAIN,):
        report["training"] = trained_on.training()
        report["verdict"] = verdict(report)
    report["warnings"] = trained_on.unfinished() + report_warnings(report, texts_alone)
    if budget == "quick":
        report["warnings"].append("a quick evaluation, of few people: its intervals are wide; leave out --quick")
    with whole_directory(report_directory(workdir, data, split, budget == "quick")) as target:
        _write(work, people, result, predictors[MAIN], variables[MAIN], written, target, example=not data)
    return report


def _planned(
    workdir: Path,
    settings: PolicyEvaluation,
    budget: Budget,
    people: Split,
    baselines: int,
    reads: bool,
    everybody: bool,
) -> tuple[PolicyEvaluation, Amount]:
    """The settings of the budget, and what they amount to; says it, with the intervals and the time to expect."""
    number, most = len(people.users), int(np.asarray(people.table.count)[:, 1].max(initial=0))
    settings = with_budget(settings, budget, number, most)
    all_of_them = everybody and budget in ("configured", "full")
    shown = dataclasses.replace(settings, users=number) if all_of_them else settings
    table = people.table
    each = 2 + (0 if table.others is None else table.others.shape[-1])
    planned = Amount(*amount(shown, number, most, responses=each, baselines=baselines, reads=reads))
    points = interval_of(shown, number, most)
    seconds = expected_seconds(workdir, planned)
    said = [
        f"up to {planned.sequences} sequences are scored and {planned.responses} responses written",
        f"95 % intervals of about ± {points[0]:.0f} points (steering score)"
        + (f" and ± {points[1]:.0f} (movement of what is written)" if planned.responses else ""),
        "no evaluation here says how long that takes"
        if seconds is None
        else f"{_minutes(seconds)} by the pace of the last evaluation",
    ]
    _log.info("evaluation: %s; fewer with --quick or --interval, all with --full", "; ".join(said))
    if not isinstance(budget, str) and max(points if planned.responses else points[:1]) > 1.05 * budget:
        _log.warning("--interval=%g: there are too few people for that; all %d are scored", budget, number)
    return settings, planned


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _without_states(work: Workdir) -> Workdir:
    task: Any = work.task
    policy = dataclasses.replace(task.config.policy, cache_states="no")
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, policy=policy))
    return dataclasses.replace(work, task=task)


def score(
    task: RewardTask | PolicyTask,
    people: Split,
    predictors: dict[str, Predictor],
    settings: Any,
    everybody: bool = False,
) -> Evaluation:
    """Scores the main model of a task and its baselines, for policies also the in-context baseline."""
    main, seed = predictors[MAIN], task.config.seed
    others = {name: predictor for name, predictor in predictors.items() if name != MAIN}
    if not main.reads:  # the main model is the population model
        others.setdefault(POPULATION, main)
    scored = partial(evaluate, split=people, dataset=task.dataset, settings=settings, seed=seed)
    users = targets = None
    if isinstance(settings, PolicyEvaluation):
        users, targets = None if everybody else settings.users, settings.targets
    result = scored(main, others=others, max_users=users, max_targets=targets)
    report = result.report
    if isinstance(task, PolicyTask) and settings.in_context_users:
        # On few people, because it is expensive; the policy is scored on the same people.
        users, targets = settings.in_context_users, min(settings.targets, _IN_CONTEXT_TARGETS)
        for name, asked in (("in_context", in_context_predictor(task)), ("in_context_own", main)):
            of_few = scored(asked, max_users=users, max_targets=targets, control=False).report
            report[name], report[f"{name}_steering"] = of_few["accuracy"], of_few["steering"]
            report["users"]["in_context"] = of_few["users"]["scored"]
    if main.reads:
        episodes = episodes_of(people, result.users, seed, max(settings.k))
        reward = _reward_model(task)
        undecided = reward is not None and reward.population != "none"
        # Choices of the synthetic task are noiseless: its rewards are not in nats, and since no user contradicts
        # themselves, contradicting choices have no correct reading.
        noiseless = isinstance(task.config.data, Synthetic)
        truth = None if noiseless else task.dataset.truth
        report["latent"] |= drift(main, episodes, settings.k, seed, truth, undecided or noiseless)
    return result


def _reward_model(task: RewardTask | PolicyTask) -> RewardModel | None:
    return task.reward if isinstance(task, PolicyTask) else task.model()


def _write(
    work: Workdir,
    people: Split,
    result: Evaluation,
    main: Predictor,
    variables: PyTree,
    written: Written | None,
    target: Path,
    example: bool,
) -> None:
    """Writes report.json, pictures, files for launch.steer, and report.html."""
    task: Any = work.task
    (target / "report.json").write_text(json.dumps(result.report, indent=1), encoding="utf-8")
    pictures: Pictures = draw_choices(task, main, people, result, target)
    shown = ""
    if isinstance(task, RewardTask):
        pictures += draw_reward(task, main, variables, people, result, target)
        has_texts = any(response for _, response in task.dataset.texts[:1])
        if example and has_texts and isinstance(task.config.model, NpBtl):
            shown = write_example(work.person(), people, result, target)
    elif written is not None:
        pictures += draw_policy(result.report, target)
        write_responses(written.responses, target)
        shown = written_section(result.report, written.responses)
    page = render(work.config, result.report, pictures, target, shown)
    (target / "report.html").write_text(page, encoding="utf-8")
