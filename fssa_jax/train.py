"""Training: the population model, the model itself, the oracle; each a loop that can be killed and resumed."""

import dataclasses
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fssa_jax import config as configs
from fssa_jax import parallel
from fssa_jax.checkpoint import Checkpoints
from fssa_jax.config import Config
from fssa_jax.data.dataset import Dataset, seen_in_training
from fssa_jax.errors import Stopped, UserError
from fssa_jax.experiment import Role, make_draw, make_model, training_data, training_steps
from fssa_jax.factorise import factorise, observed_responses
from fssa_jax.metrics_log import MetricsLog
from fssa_jax.step import TrainState, init_state, make_optimizer, make_train_step, many_steps
from fssa_jax.types import PyTree
from fssa_jax.validation import Validation
from fssa_jax.workdir import best_or_latest, has_oracle, open_workdir

_log = logging.getLogger(__name__)


class _StopSignal:
    """Remembers a SIGTERM or SIGINT for the loop to act on between two calls."""

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
        _log.warning("%s received: saving and stopping", signal.Signals(number).name)


def fit(
    role: Role,
    config: Config,
    dataset: Dataset,
    directory: Path,
    stop: _StopSignal,
    population: PyTree = None,
) -> PyTree:
    """Trains one model to its end, or goes on with it, and returns its best variables by validation.

    Checkpoints, metrics.jsonl and TensorBoard events go to `directory`. The batch of a step is a function
    of (seed, step): a run that was killed and resumed equals one that was not, bit for bit.

    Raises:
      Stopped: a signal came; everything is saved.
      UserError: the loss is not finite, or something cannot be written.
    """
    steps = training_steps(config, role)
    mode = parallel.resolve(config.train.parallel, config.train.users)
    axis_name = parallel.AXIS if mode == "pmap" else None
    model = make_model(config, dataset, role, axis_name)
    draw = make_draw(config, role)
    data = parallel.replicate(training_data(config, dataset), mode)
    optim = config.optim
    if role == "population" and config.train.population_learning_rate:
        optim = dataclasses.replace(optim, learning_rate=config.train.population_learning_rate)
    optimizer = make_optimizer(optim, steps)
    validation = Validation.make(config, dataset, make_model(config, dataset, role))
    step_fn = make_train_step(
        model, optimizer, draw, config.objective, users=config.train.users, seed=config.seed,
        average_decay=config.optim.average_decay, axis_name=axis_name,
    )  # fmt: skip
    calls = {
        n: parallel.compile_steps(many_steps(step_fn, n), mode)
        for n in {config.train.steps_per_call, steps % config.train.steps_per_call}
        if n
    }

    average = config.optim.average_decay
    state = init_state(model, optimizer, config.seed, training_data(config, dataset), draw, average > 0)
    state = parallel.replicate(_warm_start(role, config, dataset, state, population), mode)
    latest = Checkpoints(directory / "checkpoints" / "latest", config.train.keep)
    best = Checkpoints(directory / "checkpoints" / "best", 1)
    restored = latest.restore(state)
    if restored is not None:
        state = restored[1]
    step = int(state.step)
    best_nll = min((best.metrics(s).get("nll", np.inf) for s in best.steps if s <= step), default=np.inf)
    log = MetricsLog(directory, step)
    bar = tqdm(total=steps, initial=step, desc=role, unit="step", disable=None, file=sys.stderr)
    warned: set[str] = set()
    pending: tuple[int, dict] | None = None
    clock = time.perf_counter()

    def last_good() -> str:
        saved = latest.steps
        good = f"the last good checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
        return f"{good} in {latest.directory}; lower config.optim.learning_rate"

    def read(step: int, metrics: dict) -> None:
        """Looks at metrics only when the next call is under way, so that the device does not wait."""
        nonlocal clock
        metrics = jax.device_get(metrics)
        losses = np.asarray(metrics["loss"])
        # A finite loss with an infinite gradient ruins the parameters all the same, one step later.
        finite = np.isfinite(losses) & np.isfinite(np.asarray(metrics["gradient_norm"]))
        if not finite.all():
            first = int(np.argmin(finite))
            what = f"the loss is {losses[first]}" if not np.isfinite(losses[first]) else "the gradient is not finite"
            raise UserError(f"{role}: {what} at step {step - len(losses) + first + 1}; {last_good()}")
        now = time.perf_counter()
        speed = len(losses) / (now - clock)
        clock = now
        values = {name: float(np.mean(value)) for name, value in metrics.items()}
        log.write(step, {**values, "steps_per_second": round(speed, 2)})
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        bar.update(len(losses))

    try:
        while step < steps:
            n = min(config.train.steps_per_call, steps - step)
            with jax.transfer_guard("disallow"):
                state, metrics = calls[n](state, data)
            if pending is not None:
                read(*pending)
            step += n
            pending = (step, metrics)
            validate = step % config.train.validate_every == 0 or step == steps
            save = step % config.train.checkpoint_every == 0 or step == steps
            if not (validate or save or stop.received):
                continue
            read(*pending)
            pending = None
            if validate:
                scores, warnings = validation(jax.device_get(state.variables))
                log.write(step, scores)
                # Before a quarter of the training a latent that does not vary yet is no collapse.
                for warning in warnings if step >= steps / 4 else []:
                    name = warning.split(":")[0]
                    if name not in warned:
                        warned.add(name)
                        _log.warning("step %d: %s", step, warning)
                if not np.isfinite(scores["val/nll"]):
                    raise UserError(f"{role}: validation is not finite at step {step}; {last_good()}")
                if scores["val/nll"] < best_nll:
                    best_nll = scores["val/nll"]
                    best.save(step, state, {"nll": best_nll})
                if bar.disable:
                    _log.info("%s: step %d of %d, val NLL %.4f", role, step, steps, scores["val/nll"])
            stopping = stop.received  # a signal may have come during the validation
            if save or stopping:
                latest.save(step, state)
            if stopping and step < steps:
                raise Stopped(f"{role}: stopped at step {step} of {steps}; the same command goes on from there")
            clock = time.perf_counter()
        chosen, _ = best_or_latest(best, latest, state)
    finally:
        bar.close()
        log.close()
        latest.close()
        best.close()
    return chosen


def _warm_start(role: Role, config: Config, dataset: Dataset, state: TrainState, population: PyTree) -> TrainState:
    """Starts a model from the population's reward, and learnt texts from a factorisation, where it has them."""
    params = dict(state.params)
    seen = jnp.asarray(seen_in_training(dataset))[:, None]
    if "text_embedding" in params:  # what training never sees is known by its features alone
        params["text_embedding"] = {"embedding": jnp.where(seen, params["text_embedding"]["embedding"], 0)}
    if population:
        shared = population["params"]
        params |= {
            name: shared[name] for name in ("population_reward", "text_bias") if name in shared and name in params
        }
    if role == "main" and config.train.factor_steps:
        table = dataset.splits["train"].table
        user, text, liked = (jnp.asarray(x) for x in observed_responses(table))
        factors, offsets = factorise(
            jax.random.key(config.seed), user, text, liked, users=len(table.chosen), texts=len(dataset.texts),
            width=config.model.width, steps=config.train.factor_steps,
        )  # fmt: skip
        params["text_embedding"] = {"embedding": jnp.where(seen, factors, 0)}
        # The encoder's offset is s(y) plus this: together they are the factorisation's.
        model = make_model(config, dataset, role)
        everything = jnp.arange(len(dataset.texts))
        encoded = model.apply(
            {**state.variables, "params": params}, everything, jnp.asarray(dataset.features), method="encode_responses"
        )
        already = encoded.offset[:, 0] - params["text_offset"]["embedding"][:, 0]  # type: ignore[union-attr]
        params["text_offset"] = {"embedding": jnp.where(seen, (offsets - already)[:, None], 0)}
    return dataclasses.replace(state, params=params, average=jax.tree.map(jnp.copy, params) if state.average else {})


def train(config: Config, workdir: Path) -> None:
    """Trains everything that evaluation compares, into `workdir`; a second call goes on or does nothing.

    Raises:
      Stopped: SIGTERM came, all is saved.
      UserError: see `fit`; also a workdir of another configuration.
    """
    configs.check(config)
    config, dataset = open_workdir(config, workdir)
    with _StopSignal() as stop:
        population = None
        if config.model.kind != "btl":  # which is the population model itself
            population = fit("population", config, dataset, workdir / "baselines" / "population", stop)
        # A DPL reward has two outputs: nothing of the population's can be its start.
        fit("main", config, dataset, workdir, stop, None if config.model.kind == "dpl" else population)
        if has_oracle(config, dataset):
            fit("oracle", config, dataset, workdir / "baselines" / "oracle", stop, population)
