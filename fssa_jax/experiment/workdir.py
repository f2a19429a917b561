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

from fssa_jax.config import reward as configs
from fssa_jax.config.reward import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, Split, log_left_out
from fssa_jax.data.new_people import with_people
from fssa_jax.errors import UserError
from fssa_jax.evaluate.evaluate import Trained
from fssa_jax.files import write_text
from fssa_jax.tasks.reward import make_draw, make_model, resolve, training_data
from fssa_jax.train import parallel
from fssa_jax.train.roles import Role, restore, steps_of, unfinished
from fssa_jax.train.step import init_state, make_optimizer

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

    @property
    def roles(self) -> tuple[Role, ...]:
        """What is trained; see `roles_of`."""
        return roles_of(self.config, self.dataset)

    def trained(self, role: Role = "main") -> Trained | None:
        """The model of a role with its best variables; None for a role that this configuration lacks."""
        if role not in self.roles:
            return None
        config, model = self.config, make_model(self.config, self.dataset, role)
        state = init_state(
            model,
            make_optimizer(config.optim, 2),
            config.seed,
            training_data(config, self.dataset),
            make_draw(config, role),
            config.optim.average_decay > 0,
        )
        found = restore(self.path, role, state)
        if found is None and role == "main":
            raise UserError(f"{self.path}: no checkpoint yet; let launch.train reach its first one")
        return None if found is None else Trained(model, *found)  # None: see `unfinished`

    def with_people(self, data: str) -> tuple["Workdir", Split]:
        """The people of a file of rows as one split to score, with what knows their texts; models are of this one.

        Raises:
          UserError: see `data.others.with_people`.
        """
        dataset, split = with_people(self.dataset, self.config.data, data)
        return dataclasses.replace(self, dataset=dataset), split

    def unfinished(self) -> list[str]:
        """One warning for every model whose training has not come to its end."""
        return unfinished(self.path, "model", {role: steps_of(self.config.train, role) for role in self.roles})


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
        "seed": config.seed,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "parallel": mode,
    }
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


def roles_of(config: Config, dataset: Dataset) -> tuple[Role, ...]:
    """What is trained, in this order; each may start from the population's model, which "btl" is itself.

    Specialists need groups to be told.
    """
    population: tuple[Role, ...] = ("population",) if config.model.kind != "btl" else ()
    oracle: tuple[Role, ...] = ("oracle",) if config.train.oracle_steps > 0 and len(dataset.groups) > 1 else ()
    return (*population, "main", *oracle)


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
