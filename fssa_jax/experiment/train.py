"""Trains an experiment: all models of its task, one after the other, into a work directory."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import jax

from fssa_jax.config import Config, PolicyConfig
from fssa_jax.evaluate.calibrate import can_be_calibrated, fit_calibration
from fssa_jax.experiment.choose import choose, needs_choice
from fssa_jax.experiment.fit import fit
from fssa_jax.experiment.folds import FoldFits, folds_of_few
from fssa_jax.experiment.make import make
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import CALIBRATION, Workdir
from fssa_jax.files import clean, locked, with_checksum, write_text
from fssa_jax.progress import doing
from fssa_jax.tasks.policy import TEACHER
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.loop import StopSignal
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)


def train(config: Config, path: Path) -> Workdir:
    """Trains all models that the evaluation compares, into `path`; a second call resumes, or does nothing if done.

    Raises:
      Stopped: SIGTERM was received; everything is saved.
      UserError: another process trains in `path`; or see `make.make` and `loop.run_to_end`.
    """
    first = jax.process_index() == 0
    with locked(path, "training") if first else contextlib.nullcontext():
        if first:
            for directory in (path, *path.glob("baselines/*")):
                clean(directory)
        work = make(config, path)
        trained: dict[str, PyTree] = {}
        if isinstance(work.config, PolicyConfig) and (variables := teacher_variables(work.config)) is not None:
            trained[TEACHER] = variables
        _log.info("training on %s", ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()})))
        with StopSignal() as stop:
            for name in work.task.names:
                if name == MAIN and needs_choice(work):
                    work = choose(work, trained, stop)
                trained[name] = fit(work, name, trained, stop)
            work.task.finish(path, trained[MAIN])
            if first:
                calibrate(work, stop)
        return work


def calibrate(work: Workdir, stop: StopSignal) -> None:
    """Fits the calibration of a trained reward model that has one, and writes it; does nothing if that was done."""
    task, file = work.task, work.path / CALIBRATION
    if not isinstance(task, RewardTask) or not can_be_calibrated(task.model()):
        return
    steps = work.best_step(MAIN)
    if file.is_file() and (before := work.calibration()) is not None and before.step == steps:
        return
    file.unlink(missing_ok=True)  # of an earlier training
    found = work.trained()
    assert found is not None  # the main model was trained
    unseen = [(found[0], task.dataset.splits["val"])]
    if (folds := folds_of_few(task.dataset, task.config.data.split_seed)) is not None:
        fits = FoldFits(task.config, stop)
        mains = fits.main(folds, steps, fits.population(folds, work.best_step(POPULATION)))
        unseen = [(main, dataset.splits["val"]) for main, dataset in zip(mains, folds.datasets, strict=True)]
    with doing("calibration on validation people"):
        fitted = dataclasses.replace(fit_calibration(task, unseen), step=steps)
    write_text(file, json.dumps(with_checksum(fitted.as_json()), indent=1))
    what = "contexts help" if fitted.helps else "contexts are not shown to help: everybody gets the population model"
    said = "calibration on %d validation people: %s (%.3f ± %.3f nats per choice)"
    _log.info(said, fitted.people, what, fitted.gain, 1.96 * fitted.standard_error)
