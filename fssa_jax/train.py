"""Training: the population model, the model itself, the oracle; each a loop that can be killed and resumed."""

import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fssa_jax import config as configs
from fssa_jax import parallel
from fssa_jax.checkpoint import Checkpoints
from fssa_jax.config import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset
from fssa_jax.errors import UserError
from fssa_jax.evaluate import collapse_warnings, latent_health
from fssa_jax.experiment import Role, make_draw, make_model, training_data
from fssa_jax.factorise import factorise, observed_responses
from fssa_jax.files import write_text
from fssa_jax.metrics import preference_accuracy
from fssa_jax.models.rewards import RewardModel
from fssa_jax.predict import evaluation_episodes, make_predictor
from fssa_jax.step import TrainState, init_state, make_optimizer, make_train_step, many_steps
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

_VALIDATION_SEED = 1_000_003  # contexts of the validation set: the same in every run


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """SIGTERM came: the state is saved, and the same command goes on from there."""


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


class _MetricsLog:
    """metrics.jsonl and TensorBoard events; what a killed run wrote past the resumed step is removed."""

    def __init__(self, directory: Path, step: int):
        self._path = directory / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the last line of a killed run may be cut off
        return float("inf")


@dataclasses.dataclass
class Validation:
    """A fixed set of held-out episodes, and the scores of a model on it."""

    predict: Callable
    episodes: PyTree
    ks: tuple[int, ...]
    features: jax.Array
    conditional: bool
    model: RewardModel

    @classmethod
    def make(cls, config: Config, dataset: Dataset, model: RewardModel) -> "Validation":
        table = jax.tree.map(jnp.asarray, dataset.splits["val"].table)
        users = jnp.flatnonzero(table.count[:, 1] > 0)
        conditional = model.latent == "context"
        rows = table.chosen.shape[2]
        ks = tuple(k for k in sorted(set(config.evaluate.k)) if k <= rows) if conditional else (0,)
        episodes = evaluation_episodes(_VALIDATION_SEED, 0, table, users, max_context=max(ks))
        predict = make_predictor(model, config.evaluate.samples)
        return cls(predict, episodes, ks, jnp.asarray(dataset.features), conditional, model)

    def __call__(self, variables: PyTree) -> tuple[dict[str, float], list[str]]:
        """Mean NLL over users and k, accuracy at every k, and warnings of a collapsed latent."""
        log_p, latent, kl = self.predict(variables, self.features, self.episodes, self.ks)
        mask = np.asarray(self.episodes.targets.mask)
        hits = np.asarray(preference_accuracy(jnp.asarray(log_p)))

        def by_k(x):
            return ((x * mask).sum(-1) / mask.sum(-1)).mean(-1)

        scores = {"val/nll": float(by_k(-log_p).mean())}
        scores |= {f"val/accuracy_k{k}": float(a) for k, a in zip(self.ks, by_k(hits), strict=True)}
        if not self.conditional:
            return scores, []
        health = latent_health(latent, kl, self.model)
        scores |= {f"latent/{name}": float(value) for name, value in health.items()}
        moved = float(np.abs(np.exp(log_p[-1]) - np.exp(log_p[0]))[mask].mean())
        return scores, collapse_warnings(health, moved)


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
    steps = {"main": config.train.steps, "population": config.train.population_steps,
             "oracle": config.train.oracle_steps}[role]  # fmt: skip
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
    log = _MetricsLog(directory, step)
    bar = tqdm(total=steps, initial=step, desc=role, unit="step", disable=None, file=sys.stderr)
    warned: set[str] = set()
    pending: tuple[int, dict] | None = None
    clock = time.perf_counter()

    def read(step: int, metrics: dict) -> None:
        """Looks at metrics only when the next call is under way, so that the device does not wait."""
        nonlocal clock
        metrics = jax.device_get(metrics)
        losses = np.asarray(metrics["loss"])
        if not np.isfinite(losses).all():
            bad = step - len(losses) + int(np.argmin(np.isfinite(losses))) + 1
            saved = latest.steps
            good = f"the last good checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
            raise UserError(
                f"{role}: the loss is {losses[~np.isfinite(losses)][0]} at step {bad}; {good} in "
                f"{latest.directory}; lower config.optim.learning_rate"
            )
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
            end = step == steps or stop.received
            validate = step % config.train.validate_every == 0 or step == steps
            if not (end or validate or step % config.train.checkpoint_every == 0):
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
                    raise UserError(f"{role}: validation is not finite at step {step}; lower the learning rate")
                if scores["val/nll"] < best_nll:
                    best_nll = scores["val/nll"]
                    best.save(step, state, {"nll": best_nll})
                if bar.disable:
                    _log.info("%s: step %d of %d, val NLL %.4f", role, step, steps, scores["val/nll"])
            if end or step % config.train.checkpoint_every == 0:
                latest.save(step, state)
            if stop.received and step < steps:
                raise Stopped(f"{role}: stopped at step {step} of {steps}; the same command goes on from there")
            clock = time.perf_counter()
        chosen = _best_or_latest(best, latest, state)
    finally:
        bar.close()
        log.close()
        latest.close()
        best.close()
    return chosen


def _warm_start(role: Role, config: Config, dataset: Dataset, state: TrainState, population: PyTree) -> TrainState:
    """Starts a model from the population's reward, and learnt texts from a factorisation, where it has them."""
    params = dict(state.params)
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
        params["text_embedding"] = {"embedding": factors}
        # The encoder's offset is s(y) plus this: together they are the factorisation's.
        model = make_model(config, dataset, role)
        everything = jnp.arange(len(dataset.texts))
        encoded = model.apply(
            {**state.variables, "params": params}, everything, jnp.asarray(dataset.features), method="encode_responses"
        )
        already = encoded.offset[:, 0] - params["text_offset"]["embedding"][:, 0]  # type: ignore[union-attr]
        params["text_offset"] = {"embedding": (offsets - already)[:, None]}
    return dataclasses.replace(state, params=params, average=jax.tree.map(jnp.copy, params) if state.average else {})


def _best_or_latest(best: Checkpoints, latest: Checkpoints, like: TrainState) -> PyTree:
    try:
        restored = best.restore(like)
    except UserError as error:
        _log.warning("%s; using the latest checkpoint", error)
        restored = None
    restored = restored or latest.restore(like)
    assert restored is not None
    return jax.device_get(restored[1].variables)


def restore_variables(role: Role, config: Config, dataset: Dataset, directory: Path) -> PyTree:
    """The best variables of a trained model.

    Raises:
      UserError: there is no checkpoint.
    """
    model = make_model(config, dataset, role)
    state = init_state(model, make_optimizer(config.optim, 2), config.seed, training_data(config, dataset),
                       make_draw(config, role), config.optim.average_decay > 0)  # fmt: skip
    stores = [directory / "checkpoints" / name for name in ("best", "latest")]
    if not any(store.is_dir() for store in stores):
        raise UserError(f"{directory}: no checkpoints; train first with launch.train --workdir={directory}")
    best, latest = Checkpoints(stores[0], 1), Checkpoints(stores[1], config.train.keep)
    if not best.steps and not latest.steps:
        raise UserError(f"{directory}: no checkpoint yet; let launch.train reach its first one")
    return _best_or_latest(best, latest, state)


def train(config: Config, workdir: Path) -> None:
    """Trains everything that evaluation compares, into `workdir`; a second call goes on or does nothing.

    Raises:
      Stopped: SIGTERM came, all is saved.
      UserError: see `fit`; also a workdir of another configuration.
    """
    configs.check(config)
    dataset = open_workdir(config, workdir)
    with _StopSignal() as stop:
        population = None
        if config.model.kind == "np_btl":
            population = fit("population", config, dataset, workdir / "baselines" / "population", stop)
        fit("main", config, dataset, workdir, stop, population)
        if has_oracle(config, dataset):
            fit("oracle", config, dataset, workdir / "baselines" / "oracle", stop, population)


def has_oracle(config: Config, dataset: Dataset) -> bool:
    """Whether specialists are trained: there are groups, and a latent to tell them apart by."""
    return config.model.kind == "np_btl" and config.train.oracle_steps > 0 and len(dataset.groups) > 1


def open_workdir(config: Config, workdir: Path) -> Dataset:
    """Makes the work directory, or checks that it is this configuration's, and returns its data.

    The data is stored in it, so that every later program needs the directory alone.
    """
    path = workdir / "config.json"
    if path.exists():
        before = configs.read(path)
        difference = _first_difference(dataclasses.asdict(before), dataclasses.asdict(config))
        if difference:
            name, old, new = difference
            raise UserError(
                f"{workdir}: was trained with config.{name}={old!r}, not {new!r}; "
                "give the same configuration, or another --workdir"
            )
        return datasets.load(workdir / "data")
    dataset = load_dataset(config)
    report_left_out(dataset)
    longest = int(np.asarray(dataset.splits["test"].table.count)[:, 0].max(initial=0))
    if max(config.evaluate.k) > longest:
        raise UserError(
            f"config.evaluate.k: {max(config.evaluate.k)} is larger than any context; the longest of a test user "
            f"has {longest} choices"
        )
    rows = dataset.splits["train"].table.chosen.shape[2]
    if config.data.source != "synthetic" and config.train.max_context > rows:
        raise UserError(f"config.train.max_context: {config.train.max_context} is larger than any context ({rows})")
    datasets.save(dataset, workdir / "data")
    run = {
        "seed": config.seed, "command": sys.argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__, "python": sys.version.split()[0],
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
    }  # fmt: skip
    write_text(workdir / "run.json", json.dumps(run, indent=2))
    write_text(path, configs.to_json(config))
    return dataset


def report_left_out(dataset: Dataset) -> None:
    """Says what the data set leaves out: nothing is dropped silently."""
    report = dataset.report
    skipped = report.get("skipped", [])
    if skipped:
        _log.warning("%d rows skipped, the first: %s", len(skipped), skipped[0])
    if report.get("duplicates"):
        _log.warning("%d duplicate rows kept once", report["duplicates"])
    users = report.get("left_out_users", [])
    if users:
        names = ", ".join(users[:10]) + (" …" if len(users) > 10 else "")
        _log.warning("%d users with too few rows left out: %s (all in data/meta.json)", len(users), names)
    for reason, number in report.get("left_out_rows", {}).items():
        if number:
            _log.warning("%d rows left out: %s", number, reason)


def _first_difference(old: dict, new: dict, prefix: str = "") -> tuple[str, object, object] | None:
    for name in new:
        a, b = old.get(name), new[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found = _first_difference(a, b, f"{prefix}{name}.")
            if found:
                return found
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            return f"{prefix}{name}", a, b
    return None
