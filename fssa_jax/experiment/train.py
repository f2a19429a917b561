"""Trains an experiment: all models of its task, one after the other, into a work directory."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import jax

from fssa_jax.config import Config, PolicyConfig
from fssa_jax.errors import UserError
from fssa_jax.evaluate.calibrate import can_be_calibrated, fit_calibration
from fssa_jax.experiment.choose import choose, needs_choice
from fssa_jax.experiment.fit import fit
from fssa_jax.experiment.folds import FoldFits, Folds
from fssa_jax.experiment.make import make
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import CALIBRATION, Workdir
from fssa_jax.files import clean, locked, with_checksum, write_text
from fssa_jax.progress import doing
from fssa_jax.tasks.policy import TEACHER
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.loop import StopSignal
from fssa_jax.train.profile import Steps
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)


def train(config: Config, path: Path, traced: Steps | None = None) -> Workdir:
    """Trains all models that the evaluation compares, into `path`; a second call resumes, or does nothing if done.

    Args:
      config: the experiment.
      path: its work directory.
      traced: steps of the main model that the profiler traces, into `path`/profile.

    Raises:
      Stopped: SIGTERM was received; everything is saved.
      UserError: another process trains in `path`; the main model has fewer steps than are to be traced; or see
        `make.make` and `loop.run_to_end`.
    """
    first = jax.process_index() == 0
    if traced is not None and traced.stop > config.train.steps:
        raise UserError(f"--profile: the training has {config.train.steps} steps, not {traced.stop}; give fewer")
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
            fits = None
            if isinstance(work.task, RewardTask) and can_be_calibrated(work.task.model()):
                fits = FoldFits(Folds.for_decisions(work.dataset, work.config.data.split_seed), stop)
            if fits is not None and needs_choice(work):
                work = choose(work, fits)
            for name in work.task.names:
                trained[name] = fit(work, name, trained, stop, traced if name == MAIN else None)
            work.task.finish(path, trained[MAIN])
            if fits is not None and first:
                if len(fits.folds) > 1 and "chosen" not in work.run:
                    # The population models that are served were trained for as long as the configuration says.
                    fits = FoldFits(fits.folds, stop, work.best_step(POPULATION))
                calibrate(work, fits)
        return work


def calibrate(work: Workdir, fits: FoldFits) -> None:
    """Fits the calibration of a trained reward model, and writes it; does nothing if that was done."""
    file, steps = work.path / CALIBRATION, work.best_step(MAIN)
    before = work.calibration()
    if before is not None and before.step == steps:
        return
    file.unlink(missing_ok=True)  # of an earlier training
    found = work.trained()
    assert isinstance(work.task, RewardTask)
    assert found is not None  # the main model was trained
    models, datasets = [found[0]], [work.dataset]
    if len(fits.folds) > 1:
        models, datasets = fits.main(work.config, steps), fits.folds.datasets
    unseen = [(model, dataset.splits["val"]) for model, dataset in zip(models, datasets, strict=True)]
    with doing("calibration on validation people"):
        fitted = dataclasses.replace(fit_calibration(work.task, unseen), step=steps)
    write_text(file, json.dumps(with_checksum(fitted.as_json()), indent=1))
    what = "better than the population model"
    if not fitted.helps:
        what = "contexts are not shown to help: everybody gets the population model"
    said = "calibration on %d validation people: %s (%.3f ± %.3f nats per choice)"
    _log.info(said, fitted.people, what, fitted.gain, 1.96 * fitted.standard_error)
