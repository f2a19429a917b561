"""Cross-validation of a reward model: every person is scored once, by a model that was not trained on them.

Each fold trains with the settings and for the number of steps of the work directory, and is calibrated on the people of
the other folds. These settings were chosen with the same people, which makes the scores optimistic by what a handful of
numbers can do. The training is repeated with a quarter and with half of the people, for as many steps: the learning
curve.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.data.dataset import SPLITS, seen_in_training
from fssa_jax.errors import UserError
from fssa_jax.evaluate.calibrate import Fitted, can_be_calibrated, fit_calibrations_by_others
from fssa_jax.evaluate.evaluate import Evaluation, evaluate
from fssa_jax.evaluate.verdict import verdict
from fssa_jax.evaluate.warnings import report_warnings
from fssa_jax.experiment.folds import FoldFits, Folds, with_penalties
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import whole_directory
from fssa_jax.report.html import render
from fssa_jax.report.pictures import draw_choices
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.loop import StopSignal

REPORT = "report-folds"
_SHARES = (0.25, 0.5)  # of the training people, for the learning curve


def cross_validate(workdir: Path, number: int, ks: tuple[int, ...] = ()) -> dict[str, Any]:
    """Writes report-folds/ of a work directory, and returns the content of its report.json.

    Args:
      workdir: work directory of a reward model that reads choices.
      number: of folds.
      ks: context sizes; those of the configuration if empty.

    Raises:
      UserError: not such a work directory, or fewer people than folds.
      Stopped: a signal was received; nothing was written.
    """
    work = Workdir.open(workdir)
    task: Any = work.task
    if not isinstance(task, RewardTask) or not task.reads(MAIN):
        raise UserError(f"--folds: needs a reward model that reads choices, such as np_btl; {workdir} is none")
    if task.dataset.truth is not None or not task.dataset.report.get("users"):
        raise UserError(f"--folds: is for rows of people; {workdir} was trained on a benchmark")
    work.trained()  # raises if there is no checkpoint
    settings = dataclasses.replace(task.config.evaluate, k=ks or task.config.evaluate.k)
    folds = Folds.of(task.dataset, SPLITS, number, task.config.data.split_seed)
    with StopSignal() as stop:
        fits = FoldFits(folds, stop, work.best_step(POPULATION))
        result, main, fitted = _scored(work, fits, settings)
        report = result.report
        report |= {
            "step": work.best_step(MAIN),
            "data": f"{number} folds of all people",
            "source": "",
            "config": task.config.name,
            "seed": task.config.seed,
            "run": work.run,
            "folds": number,
        }
        report["training"] = work.training() | {"calibration": _calibration(fitted)}
        report["learning_curve"] = _learning_curve(work, fits, settings, result)
    report["verdict"] = verdict(report)
    report["warnings"] = report_warnings(report, False)
    with whole_directory(workdir / REPORT) as target:
        (target / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        drawn: Any = task
        pictures = draw_choices(drawn, main, folds.people, result, target)
        page = render(task.config, report, pictures, target, "")
        (target / "report.html").write_text(page, encoding="utf-8")
    return report


def _scored(
    work: Workdir, fits: FoldFits, settings: Any, share: float = 1.0
) -> tuple[Evaluation, Predictor, list[Fitted]]:
    """Fits that are trained on a share of the people; their penalties are as strong per choice as with all."""
    config, fitted = with_penalties(work.config, 1 / share), list[Fitted]()
    mains = fits.main(config, work.best_step(MAIN))
    if isinstance(work.task, RewardTask) and can_be_calibrated(work.task.model()):
        unseen = [(main, dataset.splits["test"]) for main, dataset in zip(mains, fits.folds.datasets, strict=True)]
        fitted = fit_calibrations_by_others(work.task, unseen)
        mains = [{**main, "calibration": one.calibration._asdict()} for main, one in zip(mains, fitted, strict=True)]
    main = fits.predictor(config, MAIN, mains)
    others = {POPULATION: fits.predictor(config, POPULATION, fits.population(config))}
    folds = fits.folds
    trained_on = np.stack([seen_in_training(dataset) for dataset in folds.datasets])

    def seen(people: np.ndarray, texts: np.ndarray) -> np.ndarray:
        return trained_on[folds.fold[people], texts]

    scored = partial(evaluate, main, folds.people, work.dataset, settings, others=others, seed=config.seed, seen=seen)
    return scored(control=share == 1), main, fitted


def _calibration(fitted: list[Fitted]) -> dict[str, Any] | None:
    """The calibration of folds, for a verdict: it helps if it does in any of them."""
    if not fitted:
        return None
    people = max(one.people for one in fitted)
    return {"helps": any(one.helps for one in fitted), "people": people, "folds": [one.as_json() for one in fitted]}


def _learning_curve(work: Workdir, fits: FoldFits, settings: Any, whole: Evaluation) -> dict[str, Any]:
    """The gain at the largest k with fewer training people, and what the last doubling gained, paired within people."""
    k = str(max(settings.k))
    trained_on = [len(dataset.splits["train"].users) for dataset in fits.folds.datasets]
    people, gains, accuracies = [], [], []
    for share in _SHARES:
        fewer = fits.fewer(share, work.config.seed)
        result, *_ = _scored(work, fewer, settings, share)
        people.append(round(float(np.mean([len(d.splits["train"].users) for d in fewer.folds.datasets]))))
        gains.append(result.report["gain"][k])
        accuracies.append(result.accuracy_by_user[-1])
    last = _paired(whole.accuracy_by_user[-1] - accuracies[-1])
    people.append(round(float(np.mean(trained_on))))
    return {"k": int(k), "people": people, "gain": [*gains, whole.report["gain"][k]], "last": last}


def _paired(difference: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The mean of differences with a normal 95 % interval."""
    values = np.asarray(difference, float)
    mean, half = float(values.mean()), 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}
