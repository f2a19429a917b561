"""A trace of some training steps, by JAX's profiler: for TensorBoard, XProf or Perfetto."""

import dataclasses
import logging
from pathlib import Path

import jax

from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps `start` + 1 to `stop`, as far as calls of several steps allow: a call is traced whole or not at all."""

    start: int
    stop: int


class Profile:
    """Traces the calls of a training loop that begin within `steps`, into a directory; nothing if `steps` is None.

    A context manager, so that a trace is written also where the training ends before `steps.stop`.
    """

    def __init__(self, steps: Steps | None, directory: Path):
        self._steps, self._directory, self._running, self._traced = steps, directory, False, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._steps is not None and not self._traced:
            said = (
                "profile: nothing was traced: no call began within steps %d:%d; they were trained before, the training "
                "ended before them, or config.train.steps_per_call is larger"
            )
            _log.warning(said, self._steps.start, self._steps.stop)

    def before(self, step: int, state: PyTree) -> None:
        """Called before the steps from `step` on; the state is waited for, so that earlier steps are not traced."""
        if self._steps is None or self._running or not self._steps.start <= step < self._steps.stop:
            return
        jax.block_until_ready(state)
        self._directory.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(str(self._directory))
        self._running = self._traced = True

    def after(self, step: int, state: PyTree) -> None:
        """Called after the steps up to `step`; the last traced ones are waited for."""
        if self._steps is not None and self._running and step >= self._steps.stop:
            jax.block_until_ready(state)
            self._end()

    def _end(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            _log.info("profile: a trace is in %s; open it with tensorboard --logdir=%s", *[self._directory] * 2)
