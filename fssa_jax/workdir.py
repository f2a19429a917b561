"""A trained work directory: all that programs after training need."""

import dataclasses
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax import config as configs
from fssa_jax import parallel
from fssa_jax.checkpoint import Checkpoints
from fssa_jax.config import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, Split, log_left_out
from fssa_jax.data.others import add_people
from fssa_jax.errors import UserError
from fssa_jax.evaluate import Trained
from fssa_jax.experiment import Role, make_draw, make_model, resolve, training_data, training_steps
from fssa_jax.files import write_text
from fssa_jax.step import TrainState, init_state, make_optimizer
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

# What a start that was interrupted may leave before config.json is written.
_OWN = (
    "data",
    "embedding",
    "start",
    "reference.npz",
    "run.json",
    "baselines",
    "checkpoints",
    "tensorboard",
    "metrics.jsonl",
)


@dataclasses.dataclass
class Workdir:
    """Configuration, data and models of `launch.train --workdir=DIR`."""

    path: Path
    config: Config
    dataset: Dataset
    run: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Workdir":
        """Raises `UserError` if this is no work directory."""
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json; train first with launch.train --config=… --workdir={path}")
        if "policy" in configs.read_json(path / "config.json"):
            raise UserError(f"{path}: holds a language model or a policy, no reward model; policies write to --prompt")
        run_file = path / "run.json"
        try:
            run = json.loads(run_file.read_text()) if run_file.is_file() else {}
        except ValueError as error:
            raise UserError(f"{run_file}: damaged ({error}); remove it") from error
        return cls(path, configs.read(path / "config.json"), datasets.load(path / "data"), run)

    def trained(self, role: Role = "main") -> Trained | None:
        """The model of a role with its best variables; None for a role that this configuration lacks."""
        if role == "population" and self.config.model.kind == "btl":
            return None
        if role == "oracle" and not has_oracle(self.config, self.dataset):
            return None
        directory = self._directory(role)
        if role != "main" and not any((directory / "checkpoints").glob("*/*")):
            return None  # training has not come to it yet: see `unfinished`
        variables, step = restore_variables(role, self.config, self.dataset, directory)
        return Trained(make_model(self.config, self.dataset, role), variables, step)

    def add_rows(self, data: str) -> Split:
        """The people of a file of rows as one split to score; see `data.others.add_people`."""
        return add_people(self.dataset, self.config.data, data)

    def unfinished(self) -> list[str]:
        """One warning for every model whose training has not come to its end."""
        warnings = []
        for role in ("main", "population", "oracle"):
            if role == "population" and self.config.model.kind == "btl":
                continue
            if role == "oracle" and not has_oracle(self.config, self.dataset):
                continue
            steps = training_steps(self.config, role)
            stores = [self._directory(role) / "checkpoints" / name for name in ("latest", "best")]
            done = max((s for store in stores for s in Checkpoints(store, 1, read_only=True).steps), default=0)
            if done < steps:
                warnings.append(f"{role} model: training is unfinished, step {done} of {steps}; run launch.train again")
        return warnings

    def _directory(self, role: Role) -> Path:
        return self.path if role == "main" else self.path / "baselines" / role


def open_workdir(config: Config, workdir: Path) -> tuple[Config, Dataset]:
    """Makes the work directory, or checks that it is this configuration's; returns what it holds.

    Of the configuration, what the data decide is decided (`experiment.resolve`).

    The data is stored in it, so that every later program needs the directory alone.
    """
    path = workdir / "config.json"
    mode = parallel.resolve(config.train.parallel, config.train.users)
    # A start that failed before its first checkpoint binds nobody: its directory is made anew.
    if path.exists() and any(workdir.glob("**/checkpoints/*/*")):
        before = configs.read(path)
        dataset = datasets.load(workdir / "data")
        config = resolve(config, dataset, quiet=True)
        check_same(workdir, before, config)
        return config, dataset
    refuse_foreign(workdir)
    dataset = load_dataset(config, workdir / "embedding")
    log_left_out(dataset)
    config = resolve(config, dataset)
    check_context_sizes(config.evaluate.k, dataset)
    datasets.save(dataset, workdir / "data")
    run = {
        "seed": config.seed, "command": sys.argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__, "python": sys.version.split()[0],
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()], "parallel": mode,
    }  # fmt: skip
    write_text(workdir / "run.json", json.dumps(run, indent=2))
    write_text(path, configs.to_json(config))
    shutil.rmtree(workdir / "embedding", ignore_errors=True)
    return config, dataset


def check_context_sizes(ks: tuple[int, ...], dataset: Dataset) -> None:
    """Raises `UserError` if no test user has as many context choices as the largest k."""
    longest = int(np.asarray(dataset.splits["test"].table.count)[:, 0].max(initial=0))
    if max(ks) > longest:
        shorter = ",".join(str(k) for k in sorted({*(k for k in ks if k < longest), longest}))
        raise UserError(
            f"config.evaluate.k: {max(ks)} is larger than any context; the longest of a test user "
            f'has {longest} choices; give "--config.evaluate.k=({shorter},)" or more rows a user'
        )


def check_same(workdir: Path, before: Any, config: Any) -> None:
    """Raises `UserError` if a work directory was trained with another configuration, naming the first difference."""
    difference = _first_difference(dataclasses.asdict(before), dataclasses.asdict(config))
    if difference:
        name, old, new = difference
        raise UserError(
            f"{workdir}: was trained with config.{name}={old!r}, not {new!r}; "
            "give the same configuration, or another --workdir"
        )


def refuse_foreign(workdir: Path) -> None:
    """Raises `UserError` if a directory that is no work directory yet holds somebody's files."""
    if (workdir / "config.json").exists() or not workdir.is_dir():
        return
    foreign = sorted(p.name for p in workdir.iterdir() if p.name not in _OWN)
    if foreign or ((workdir / "data").exists() and not datasets.is_prepared(workdir / "data")):
        raise UserError(f"{workdir}: holds other files ({', '.join(foreign) or 'data'}); give a new --workdir")


def has_oracle(config: Config, dataset: Dataset) -> bool:
    """Whether specialists are trained: there are groups, and a latent to tell them apart by."""
    return config.train.oracle_steps > 0 and len(dataset.groups) > 1


def best_or_latest(best: Checkpoints, latest: Checkpoints, like: TrainState) -> tuple[PyTree, int]:
    """The variables to predict with, and their step: the best by validation, or else the newest."""
    try:
        restored = best.restore(like)
    except UserError as error:
        _log.warning("%s; using the latest checkpoint", error)
        restored = None
    restored = restored or latest.restore(like)
    assert restored is not None
    return jax.device_get(restored[1].variables), restored[0]


def restore_variables(role: Role, config: Config, dataset: Dataset, directory: Path) -> tuple[PyTree, int]:
    """The best variables of a trained model, and their step.

    Raises:
      UserError: there is no checkpoint.
    """
    model = make_model(config, dataset, role)
    state = init_state(model, make_optimizer(config.optim, 2), config.seed, training_data(config, dataset),
                       make_draw(config, role), config.optim.average_decay > 0)  # fmt: skip
    stores = [directory / "checkpoints" / name for name in ("best", "latest")]
    if not any(store.is_dir() for store in stores):
        raise UserError(f"{directory}: no checkpoints; train first with launch.train --workdir={directory}")
    best, latest = (Checkpoints(store, 1, read_only=True) for store in stores)
    if not best.steps and not latest.steps:
        raise UserError(f"{directory}: no checkpoint yet; let launch.train reach its first one")
    return best_or_latest(best, latest, state)


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
