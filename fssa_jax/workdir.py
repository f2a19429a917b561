"""A trained work directory: all that programs after training need."""

import dataclasses
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax import config as configs
from fssa_jax.checkpoint import Checkpoints
from fssa_jax.config import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, log_left_out
from fssa_jax.data.synthetic import SOURCES
from fssa_jax.errors import UserError
from fssa_jax.evaluate import Trained
from fssa_jax.experiment import Role, make_draw, make_model, resolve, training_data
from fssa_jax.files import write_text
from fssa_jax.step import TrainState, init_state, make_optimizer
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)


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
        run_file = path / "run.json"
        run = json.loads(run_file.read_text()) if run_file.is_file() else {}
        return cls(path, configs.read(path / "config.json"), datasets.load(path / "data"), run)

    def trained(self, role: Role = "main") -> Trained | None:
        """The model of a role with its best variables; None for a role that this configuration lacks."""
        if role == "population" and self.config.model.kind != "np_btl":
            return None
        if role == "oracle" and not has_oracle(self.config, self.dataset):
            return None
        directory = self.path if role == "main" else self.path / "baselines" / role
        variables = restore_variables(role, self.config, self.dataset, directory)
        return Trained(make_model(self.config, self.dataset, role), variables)


def open_workdir(config: Config, workdir: Path) -> tuple[Config, Dataset]:
    """Makes the work directory, or checks that it is this configuration's; returns what it holds.

    Of the configuration, what the data decide is decided (`experiment.resolve`).

    The data is stored in it, so that every later program needs the directory alone.
    """
    path = workdir / "config.json"
    if path.exists():
        before = configs.read(path)
        dataset = datasets.load(workdir / "data")
        config = resolve(config, dataset)
        difference = _first_difference(dataclasses.asdict(before), dataclasses.asdict(config))
        if difference:
            name, old, new = difference
            raise UserError(
                f"{workdir}: was trained with config.{name}={old!r}, not {new!r}; "
                "give the same configuration, or another --workdir"
            )
        return config, dataset
    dataset = load_dataset(config)
    log_left_out(dataset)
    config = resolve(config, dataset)
    longest = int(np.asarray(dataset.splits["test"].table.count)[:, 0].max(initial=0))
    if max(config.evaluate.k) > longest:
        raise UserError(
            f"config.evaluate.k: {max(config.evaluate.k)} is larger than any context; the longest of a test user "
            f"has {longest} choices"
        )
    rows = dataset.splits["train"].table.chosen.shape[2]
    if config.data.source not in SOURCES and config.train.max_context > rows:
        raise UserError(f"config.train.max_context: {config.train.max_context} is larger than any context ({rows})")
    datasets.save(dataset, workdir / "data")
    run = {
        "seed": config.seed, "command": sys.argv, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__, "python": sys.version.split()[0],
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
    }  # fmt: skip
    write_text(workdir / "run.json", json.dumps(run, indent=2))
    write_text(path, configs.to_json(config))
    return config, dataset


def has_oracle(config: Config, dataset: Dataset) -> bool:
    """Whether specialists are trained: there are groups, and a latent to tell them apart by."""
    return config.model.kind == "np_btl" and config.train.oracle_steps > 0 and len(dataset.groups) > 1


def best_or_latest(best: Checkpoints, latest: Checkpoints, like: TrainState) -> PyTree:
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
