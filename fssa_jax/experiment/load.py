"""Opens what was trained, for new people."""

import logging
from pathlib import Path

from fssa_jax.experiment.steering import is_steering, load_steering
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people.person import PersonModel
from fssa_jax.tasks.task import MAIN

_log = logging.getLogger(__name__)


def load(workdir: str | Path, base: str = "") -> PersonModel:
    """Loads the trained model of a work directory: a reward model, or a policy, which also generates text.

    Args:
      workdir: work directory that launch.train wrote, or what `launch.convert --steering` made of one.
      base: current directory of a policy's language model, if it has moved.

    Raises:
      UserError: not a work directory, a model that reads no choices, or no checkpoint.

    >>> import fssa_jax
    >>> model = fssa_jax.load("runs/mine")
    >>> model.infer([("question 0", "word1 word2", "word3")]).mean.shape[0]
    1
    """
    if is_steering(Path(workdir)):
        return load_steering(Path(workdir), base)
    work = Workdir.open(Path(workdir), base)
    person = work.person()
    for warning in work.unfinished((MAIN,)):
        _log.warning("%s", warning)
    fitted = work.calibration()
    if fitted is not None and fitted.step == work.best_step(MAIN) and not fitted.helps:
        _log.warning(
            "%s: choices were not shown to help people who were not trained on, so everybody gets the population model",
            workdir,
        )
    return person
