"""Trains an experiment: all models of its task, one after the other, into a work directory."""

import contextlib
import logging
from pathlib import Path

import jax

from fssa_jax.config import Config, PolicyConfig
from fssa_jax.experiment.choose import choose, needs_choice
from fssa_jax.experiment.fit import fit
from fssa_jax.experiment.make import make
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import clean, locked
from fssa_jax.tasks.policy import TEACHER
from fssa_jax.tasks.task import MAIN
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
            work.calibrate()
        return work
