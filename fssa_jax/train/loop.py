"""The training loop for any pure step: it can be killed and resumed, and saves all that is needed for that."""

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import optax

from fssa_jax.config.train import Loop
from fssa_jax.errors import Stopped, UserError
from fssa_jax.progress import Work, doing
from fssa_jax.train.checkpoint import Checkpoints, Parts, best_or_latest_variables
from fssa_jax.train.metrics_log import MetricsLog, last_step
from fssa_jax.train.profile import Profile, Steps
from fssa_jax.train.state import TrainState
from fssa_jax.train.step import Metrics
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

ENDED = "ended"
"""Metric of the last checkpoint of a training that ended before its last step."""


class StopSignal:
    """Records a SIGTERM or SIGINT, which the loop handles between two calls; a second one ends the process at once."""

    def __init__(self):
        self.received = False
        self._previous: dict[int, object] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = True
        # The system's default action does not need the interpreter, so it also works while a device hangs.
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        _log.warning(
            "%s received: saving and stopping; a second signal ends the process at once", signal.Signals(number).name
        )


@dataclasses.dataclass
class Run:
    """What the loop needs to train one model.

    Attributes:
      name: shown in messages and on the progress bar.
      steps: number of training steps.
      state: initial state, on the devices that `advance` expects.
      advance: (state, step, number) -> (state, metrics): `number` steps from `step` on. The state is donated; metrics
        have one row per step, and include "loss" and "grad_norm".
      validate: held-out scores of variables, including "val/nll", by which the best are chosen; and warnings.
      culprits: step ↦ names of the batch, for the message if the step is not finite.
      learning_rate: step ↦ learning rate, for the metrics.
    """

    name: str
    steps: int
    state: TrainState
    advance: Callable[[TrainState, int, int], tuple[TrainState, Metrics]]
    validate: Callable[[PyTree], tuple[dict[str, float], list[str]]]
    culprits: Callable[[int], str] = lambda step: ""
    learning_rate: optax.Schedule | None = None


def run_to_end(run: Run, settings: Loop, directory: Path, stop: StopSignal, traced: Steps | None = None) -> PyTree:
    """Trains one model to its end, or resumes it, and returns its best variables by validation.

    Checkpoints, metrics.jsonl, TensorBoard events and a trace of the steps `traced` go to `directory`. The batch of a
    step is a function of (seed, step): a run that was killed and resumed equals an uninterrupted one, bit for bit.

    Raises:
      Stopped: a signal was received; everything is saved.
      UserError: the loss is not finite, or a file cannot be written.
    """
    name, steps, state = run.name, run.steps, run.state
    latest = Checkpoints(directory / "checkpoints" / "latest", settings.keep)
    best = Checkpoints(directory / "checkpoints" / "best", 1)
    restored = latest.restore(_parts(state))
    if restored is not None:
        state = _state(restored[1])
        if latest.metrics(restored[0]).get(ENDED):
            return best_or_latest_variables(best, latest, state.variables)[1]
    elif (done := max(last_step(directory), *best.steps, 0)) > settings.checkpoint_every:
        raise UserError(
            f"{latest.directory}: holds no checkpoint, but {name} was trained here for {done} steps; "
            "restore the checkpoints, or train into a new --workdir"
        )
    step = int(state.step)
    if 0 < step < steps:
        _log.info("%s: going on from step %d of %d", name, step, steps)
    best_nll, best_step = min(
        ((best.metrics(s).get("nll", np.inf), s) for s in best.steps if s <= step), default=(np.inf, 0)
    )
    out_of_time = time.perf_counter() + 60 * settings.minutes if settings.minutes else np.inf
    log = MetricsLog(directory, step)
    warned: set[str] = set()
    pending: tuple[int, dict] | None = None
    clock = time.perf_counter()

    def last_good() -> str:
        saved = latest.steps
        good = f"the last good checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
        return f"{good} in {latest.directory}; lower config.optim.learning_rate"

    def read(step: int, metrics: dict, work: Work) -> None:
        """Reads metrics only after the next call was dispatched, so that the device does not wait."""
        nonlocal clock
        metrics = jax.device_get(metrics)
        losses = np.asarray(metrics["loss"])
        # A finite loss with an infinite gradient ruins the parameters too, one step later.
        finite = np.isfinite(losses) & np.isfinite(np.asarray(metrics["grad_norm"]))
        if not finite.all():
            first = int(np.argmin(finite))
            what = f"the loss is {losses[first]}" if not np.isfinite(losses[first]) else "the gradient is not finite"
            number = step - len(losses) + first + 1
            raise UserError(f"{name}: {what} at step {number}{run.culprits(number)}; {last_good()}")
        now = time.perf_counter()
        speed = len(losses) / (now - clock)
        clock = now
        values = {key: float(np.mean(value)) for key, value in metrics.items()}
        if run.learning_rate is not None:
            with jax.numpy_dtype_promotion("standard"):  # optax relies on it
                values["learning_rate"] = float(np.asarray(run.learning_rate(step - 1)))
        log.write(step, {**values, "steps_per_second": round(speed, 2)})
        work.note(f"loss {values['loss']:.4f}")
        work.add(len(losses))

    profile = Profile(traced, directory / "profile")
    with contextlib.closing(log), profile, doing(name, steps, "steps", step) as work:
        while step < steps:
            # After an extension the first call may be shorter, so that validations and checkpoints fall on its end.
            n = min(settings.steps_per_call - step % settings.steps_per_call, steps - step)
            profile.before(step, state)
            with jax.transfer_guard("disallow"):
                state, metrics = run.advance(state, step, n)
            profile.after(step + n, state)
            if pending is not None:
                read(*pending, work)
            step += n
            pending = (step, metrics)
            validate = step % settings.validate_every == 0 or step == steps
            save = step % settings.checkpoint_every == 0 or step == steps
            if not (validate or save or stop.received):
                continue
            read(*pending, work)
            pending = None
            if validate:
                with doing(f"{name}: validation at step {step}", unit="batches"):
                    scores, warnings = run.validate(jax.device_get(state.variables))
                log.write(step, scores)
                # In the first quarter of the training a latent that does not vary yet has not collapsed.
                for warning in warnings if step >= steps / 4 else []:
                    kind = warning.split(":")[0]
                    if kind not in warned:
                        warned.add(kind)
                        _log.warning("step %d: %s", step, warning)
                if not np.isfinite(scores["val/nll"]):
                    raise UserError(f"{name}: validation is not finite at step {step}; {last_good()}")
                if scores["val/nll"] < best_nll:
                    best_nll, best_step = scores["val/nll"], step
                    best.save(step, _parts(state), {"nll": best_nll})
                if not work.shown:
                    _log.info("%s: step %d of %d, val NLL %.4f", name, step, steps, scores["val/nll"])
            late = time.perf_counter() > out_of_time
            ended = late or bool(settings.patience and step - best_step >= settings.patience * settings.validate_every)
            stopping = stop.received and not ended  # a signal may have arrived during the validation
            if save or stopping or ended:
                latest.save(step, _parts(state), {ENDED: 1.0} if ended else None)
            if ended and step < steps:
                why = f"{settings.minutes:g} minutes are over" if late else f"no improvement since step {best_step}"
                _log.info("%s: ended at step %d of %d, %s", name, step, steps, why)
                break
            if stopping and step < steps:
                raise Stopped(f"{name}: stopped at step {step} of {steps}; run the same command to resume")
            clock = time.perf_counter()
        if settings.patience and best_step == step:
            _log.warning("%s: still improving at the last step, %d; give more steps (config.train)", name, step)
        return best_or_latest_variables(best, latest, state.variables)[1]


def _parts(state: TrainState) -> Parts:
    """The state as parts of a checkpoint: variables for prediction separate from the rest, nothing stored twice."""
    optimiser = {"step": state.step, "params": state.params if state.average else {}, "opt_state": state.opt_state}
    return {"variables": state.variables, "optimiser": optimiser}


def _state(parts: Parts) -> TrainState:
    """The inverse of `_parts`."""
    variables, optimiser = parts["variables"], parts["optimiser"]
    average = variables["params"] if optimiser["params"] else {}
    return TrainState(
        step=optimiser["step"],
        params=optimiser["params"] or variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimiser["opt_state"],
        average=average,
    )
