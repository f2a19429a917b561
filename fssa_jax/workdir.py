"""A trained work directory: all that programs after training need."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fssa_jax import config as configs
from fssa_jax.config import Config
from fssa_jax.data import dataset as datasets
from fssa_jax.data.dataset import Dataset
from fssa_jax.errors import UserError
from fssa_jax.evaluate import Trained
from fssa_jax.experiment import Role, make_model
from fssa_jax.train import has_oracle, restore_variables


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
