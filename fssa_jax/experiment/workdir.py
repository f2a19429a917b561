"""A work directory: the one place that knows what `launch.train --workdir=DIR` keeps where.

DIR/
  config.json        the configuration, with what the data decided
  run.json           seed, command, versions, devices, fingerprints of the base and of the encoder
  data/              people, texts, features and tokens (data/dataset.py)
  reference.npz      log-probabilities of the base, of policies
  checkpoints/       of the main model: latest/ to resume from, best/ by validation
  metrics.jsonl, tensorboard/
  baselines/NAME/    the same of the models that it is compared with
  model/             of sft, the language model; start/ what it began from
  report/, report-…/ what launch.evaluate wrote
"""

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.config import NoEncoder, NpBtl, PolicyConfig, RewardConfig, SftConfig
from fssa_jax.config.experiment import Config, read
from fssa_jax.config.fields import read_json
from fssa_jax.data import dataset as datasets
from fssa_jax.data.dataset import Dataset, Split, load_tokens
from fssa_jax.data.features import EncoderFeaturiser
from fssa_jax.data.new_people import with_people
from fssa_jax.data.tokenised import note_too_long, table_with_tokens, tokenise
from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base, load_base
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.lm.token_table import join_tables
from fssa_jax.people.person import PersonModel, PersonPolicy
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.reference import stored_reference
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.sft import SftTask
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.checkpoint import Checkpoints, best_or_latest_variables
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

MET = "people_of_the_encoder"
"""In the data set's report, the people whom an encoder that was trained on other rows has met."""

# What a start that was interrupted may leave before config.json is written.
OWN = (
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

AnyTask = RewardTask | PolicyTask | SftTask


@dataclasses.dataclass(frozen=True)
class Workdir:
    """All that programs after training need; a language model itself stays where the configuration says."""

    path: Path
    task: AnyTask

    @classmethod
    def open(cls, path: Path, base: str = "") -> "Workdir":
        """Opens what was trained; `base` is where the language model is now, if it has moved.

        Raises:
          UserError: this is no work directory, or its language model is gone or another.
        """
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json; train first with launch.train --config=… --workdir={path}")
        if "model_type" in read_json(path / "config.json"):
            raise UserError(f"{path}: a language model; give the work directory of a policy that steers it")
        config = read(path / "config.json")
        if base and isinstance(config, RewardConfig):
            raise UserError(f"--base: {path} is a reward model, which has no language model; leave it out")
        return cls(path, open_task(path, config, datasets.load(path / "data"), base))

    @property
    def config(self) -> Any:
        """The configuration, with what the data decided."""
        return self.task.config

    @property
    def dataset(self) -> Dataset:
        """People, texts and features."""
        return self.task.dataset

    @property
    def run(self) -> dict[str, Any]:
        """run.json; {} where there is none.

        Raises:
          UserError: it is damaged.
        """
        file = self.path / "run.json"
        return read_json(file) if file.is_file() else {}

    def directory(self, name: str) -> Path:
        """Where checkpoints and metrics of a model are."""
        return model_directory(self.path, name)

    def trained(self, name: str = MAIN) -> tuple[PyTree, int] | None:
        """(variables, step) of a model: the best by validation, or else the newest.

        None for a model that this configuration, or its training so far, does not have.

        Raises:
          UserError: the main model has no checkpoint yet, or none can be read.
        """
        stores = self._stores(name) if name in self.task.names else None
        if stores is None:
            if name == MAIN:
                raise UserError(f"{self.path}: no checkpoint yet; let launch.train reach its first one")
            return None
        step, variables = best_or_latest_variables(*stores)
        return variables, step

    def person(self) -> PersonModel:
        """The main model, ready for new people.

        Raises:
          UserError: it reads no choices, or has no checkpoint yet.
        """
        task = self.task
        if isinstance(task, SftTask):
            raise UserError(f"{self.path}: a language model reads no choices; train np_dpo on {self.path / 'model'}")
        if isinstance(task, PolicyTask):
            if isinstance(task.config.encoder, NoEncoder):
                raise UserError(f"{self.path}: a policy for everybody reads no choices; train np_dpo")
            return PersonPolicy(task, self._best())
        if not isinstance(task.config.model, NpBtl):
            kind = type(task.config.model).__name__
            raise UserError(f"{self.path}: a {kind} model reads no choices; train np_btl")
        return PersonModel(task, task.model(), task.model(), self._best())

    def _best(self) -> PyTree:
        found = self.trained()
        assert found is not None  # the main model is there, or `trained` raises
        return found[0]

    def with_people(self, data: str) -> tuple["Workdir", Split]:
        """The people of a file of rows as one split to score, with what knows their texts; models are of this one.

        Raises:
          UserError: see `data.new_people.with_people`; or no choice is short enough.
        """
        task = self.task
        dataset, split = with_people(task.dataset, task.config.data, data, task.dataset.report.get(MET, ()))
        if not isinstance(task, PolicyTask):
            return dataclasses.replace(self, task=dataclasses.replace(task, dataset=dataset)), split
        settings = task.config.policy
        new = tokenise(task.base, dataset.texts[len(task.dataset.texts) :], settings.max_length, settings.truncate)
        tokens = join_tables(task.tokens, new)
        split.table, lost = table_with_tokens(split.table, tokens)
        reference = np.concatenate([task.reference, table_log_probs(task.base, new)])
        note_too_long(dataset, lost)
        wider = dataclasses.replace(task, dataset=dataset, tokens=tokens, reference=reference)
        return dataclasses.replace(self, task=wider), split

    def unfinished(self, names: Collection[str] = ()) -> list[str]:
        """One warning for every model, or each of these, whose training has not come to its end."""
        out = []
        for name in names or self.task.names:
            done = max((step for store in self._stores(name) or () for step in store.steps), default=0)
            if done < self.task.steps(name):
                whole = self.task.steps(name)
                out.append(f"{name} model: training is unfinished, step {done} of {whole}; run launch.train again")
        return out

    def _stores(self, name: str) -> tuple[Checkpoints, Checkpoints] | None:
        """The best and the latest checkpoints of a model, to read; None before the first of them."""
        parent = self.directory(name) / "checkpoints"
        if not any(parent.glob("*/*")):
            return None
        best, latest = (Checkpoints(parent / kind, 1, read_only=True) for kind in ("best", "latest"))
        return (best, latest) if best.steps or latest.steps else None


def model_directory(path: Path, name: str) -> Path:
    """Where checkpoints and metrics of a model of a work directory are."""
    return path if name == MAIN else path / "baselines" / name


def has_checkpoints(path: Path) -> bool:
    """Whether anything was trained here. A start that failed before binds nobody."""
    return (path / "config.json").is_file() and any(path.glob("**/checkpoints/*/*"))


def report_directory(workdir: Path, data: str = "", split: str = "test") -> Path:
    """report/ for the test users; report-val/ and report-NAME/ for validation users and other people's rows."""
    name = Path(data).name.split(".")[0] if data else "" if split == "test" else split
    return workdir / (f"report-{name}" if name else "report")


def open_task(path: Path, config: Config, dataset: Dataset, at: str = "", base: Base | None = None) -> AnyTask:
    """The task of a work directory whose data is stored.

    Args:
      path: the work directory.
      config: its configuration.
      dataset: its data.
      at: where its language model is now, if it has moved.
      base: the language model, if it is in memory.

    Raises:
      UserError: tokens are missing, or the language model is gone or another.
    """
    if isinstance(config, RewardConfig):
        return RewardTask(config, dataset)
    tokens = load_tokens(path / "data")
    if tokens is None:
        raise UserError(f"{path}: no data/tokens.npz; train into a new --workdir")
    if base is None:
        base = _load_base(path, config, at)
    _check_base(path, base)
    if isinstance(dataset.featuriser, EncoderFeaturiser):
        dataset.featuriser.share(config.policy.base, base.directory, config.policy.dtype, base.variables)
    if isinstance(config, SftConfig):
        return SftTask(config, dataset, base, tokens)
    return PolicyTask(config, dataset, base, tokens, stored_reference(base, tokens, path / "reference.npz"))


def _load_base(path: Path, config: PolicyConfig | SftConfig, at: str) -> Base:
    settings = config.policy
    # A base that is made here starts from what was made for it.
    name = at or settings.base or str(path / "start")
    if is_gone(name):
        raise UserError(
            f"{path}: its language model is not in {name}; name the directory where it is now (--base, or "
            "--config.policy.base to train on)"
        )
    return load_base(name, settings.dtype, settings.remat, settings.attention)


def is_gone(name: str) -> bool:
    """Whether a whole path names no directory any more."""
    return Path(name).is_absolute() and not Path(name).is_dir()


def _check_base(path: Path, base: Base) -> None:
    """What was trained to steer one language model means nothing to another."""
    file = path / "run.json"
    before = read_json(file).get("base") if file.is_file() else None
    if before not in (None, base.fingerprint):
        raise UserError(
            f"{path}: its adapters are of another language model than {base.directory}; name the base that it was "
            "trained with"
        )


def load(workdir: str | Path, base: str = "") -> PersonModel:
    """A trained model of a work directory, ready for new people: a reward model, or a policy, which also writes.

    Args:
      workdir: what launch.train wrote.
      base: where the language model of a policy is now, if it has moved.

    Raises:
      UserError: no work directory, a model that reads no choices, or no checkpoint in it.

    >>> import fssa_jax
    >>> model = fssa_jax.load("runs/mine")
    >>> model.infer([("question 0", "word1 word2", "word3")]).mean.shape[0]
    1
    """
    work = Workdir.open(Path(workdir), base)
    person = work.person()
    for warning in work.unfinished((MAIN,)):
        _log.warning("%s", warning)
    return person
