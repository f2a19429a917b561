"""The layout of a work directory, `launch.train --workdir=DIR`, defined here and nowhere else.

DIR/
  config.json        the configuration, with settings resolved from the data
  run.json           seed, command, versions, devices, fingerprints of the base and of the encoder, and the date that
                     the chat template gets
  calibration.json   shrinkage and temperature by k, fitted to validation people (evaluate/calibrate.py)
  data/              people, texts, features and tokens (data/dataset.py)
  reference.npz      for policies: log-probabilities of all texts under the base
  ranked.npz         for policies, if `encoder.pairs` is "ranked": the training choices with ranked pairs as targets
  checkpoints/       checkpoints of the main model: latest/ to resume from, best/ by validation
  metrics.jsonl, tensorboard/
  profile/           with launch.train --profile: a trace of some steps
  baselines/NAME/    checkpoints and metrics of each baseline
  model/             for sft: the trained language model; start/ is its initial model
  report/, report-…/ reports of launch.evaluate
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax.config import NoEncoder, NpBtl, PolicyConfig, RewardConfig, SftConfig
from fssa_jax.config.experiment import Config, read
from fssa_jax.config.fields import read_json, to_json
from fssa_jax.data import dataset as datasets
from fssa_jax.data.dataset import Dataset, Split, arrays_of, featuriser_of_texts, load_tokens
from fssa_jax.data.features import EncoderFeaturiser
from fssa_jax.data.new_people import with_people
from fssa_jax.data.tokenised import note_only_read, note_too_long, pairs_to_predict, table_with_tokens, tokenise
from fssa_jax.errors import UserError
from fssa_jax.evaluate.calibrate import Fitted, can_be_calibrated
from fssa_jax.files import LOCK, with_checksum, write_npz, write_text
from fssa_jax.lm.base import Base, load_base
from fssa_jax.lm.hub import is_here
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.lm.token_table import join_tables
from fssa_jax.people.person import PersonModel, PersonPolicy
from fssa_jax.tasks.policy import PolicyTask, cached_layers
from fssa_jax.tasks.reference import stored_reference
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import check_lists, model_settings
from fssa_jax.tasks.sft import SftTask
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.checkpoint import Checkpoints, best_or_latest_variables
from fssa_jax.train.loop import ENDED
from fssa_jax.train.state import learning_rates
from fssa_jax.types import ChoiceTable, PyTree

_log = logging.getLogger(__name__)

MET = "people_of_the_encoder"
"""Key of the data set's report: people in the training data of an encoder that was trained on other rows."""

CALIBRATION = "calibration.json"
FORMAT = 2
"""Of work directories, in run.json: another one means that parameters have another meaning."""

RANKED = "ranked.npz"

_DECAYED = 0.5  # share of the peak learning rate

# Files that an interrupted start may leave before config.json is written.
OWN = (
    LOCK,
    "data",
    "embedding",
    "start",
    "reference.npz",
    RANKED,
    "run.json",
    "baselines",
    "checkpoints",
    "tensorboard",
    "metrics.jsonl",
    "profile",
    CALIBRATION,
    "choice",
)

AnyTask = RewardTask | PolicyTask | SftTask


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A trained experiment on disk. The language model stays in the directory that the configuration names."""

    path: Path
    task: AnyTask

    @classmethod
    def open(cls, path: Path, base: str = "") -> "Workdir":
        """Opens a work directory; `base` is the current directory of the language model, if it has moved.

        Raises:
          UserError: it is not a work directory, or its language model is missing or another one.
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
        """The configuration, with settings resolved from the data."""
        return self.task.config

    @property
    def dataset(self) -> Dataset:
        """People, texts and features."""
        return self.task.dataset

    @property
    def run(self) -> dict[str, Any]:
        """See `read_run`."""
        return read_run(self.path)

    def directory(self, name: str) -> Path:
        """The directory of a model's checkpoints and metrics."""
        return model_directory(self.path, name)

    def trained(self, name: str = MAIN) -> tuple[PyTree, int] | None:
        """(variables, step) of a model: the best by validation, or else the newest.

        None for a baseline that is not configured or has no checkpoint yet.

        Raises:
          UserError: the main model has no checkpoint yet, or no readable one.
        """
        stores = self._stores(name) if name in self.task.names else None
        if stores is None:
            if name == MAIN:
                raise UserError(f"{self.path}: no checkpoint yet; run launch.train until its first checkpoint")
            return None
        step, variables = best_or_latest_variables(*stores)
        fitted = self.calibration() if name == MAIN else None
        if fitted is not None and fitted.step == step:  # else of an earlier training
            variables = {**variables, "calibration": fitted.calibration._asdict()}
        return variables, step

    def calibration(self) -> Fitted | None:
        """What was fitted to validation people after the training; None if nothing was."""
        file = self.path / CALIBRATION
        return Fitted.from_json(read_json(file, sealed=True)) if file.is_file() else None

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
        model = task.model()
        return PersonModel(task, model, model, self._best())

    def _best(self) -> PyTree:
        found = self.trained()
        assert found is not None  # `trained` raises if the main model is missing
        return found[0]

    def with_people(self, data: str) -> tuple["Workdir", Split]:
        """The people of a file of rows as one split to score, and a work directory that includes their texts.

        Raises:
          UserError: see `data.new_people.with_people`; or no choice is short enough.
        """
        task = self.task
        dataset, split = with_people(task.dataset, task.config.data, data, task.dataset.report.get(MET, ()))
        if split.table.others is not None:
            check_lists(model_settings(task.config), data)
        if not isinstance(task, PolicyTask):
            return dataclasses.replace(self, task=dataclasses.replace(task, dataset=dataset)), split
        settings = task.config.policy
        before = len(task.dataset.texts)
        cut = {i - before for i in dataset.unfinished}
        new = tokenise(task.base, dataset.texts[before:], settings.max_length, settings.truncate, cut)
        tokens = join_tables(task.tokens, new)
        split.table, lost = table_with_tokens(split.table, tokens, dataset.thresholds)
        split.table, only_read = pairs_to_predict(split.table, dataset.thresholds)
        reference = np.concatenate([task.reference, table_log_probs(task.base, new)])
        note_too_long(dataset, lost)
        if dataset.thresholds.any():
            note_only_read(dataset, only_read)
        wider = dataclasses.replace(task, dataset=dataset, tokens=tokens, reference=reference)
        return dataclasses.replace(self, task=wider), split

    def best_step(self, name: str) -> int:
        """The step of a model that was best by validation; 0 before the first checkpoint."""
        stores = self._stores(name)
        return max(stores[0].steps or stores[1].steps, default=0) if stores else 0

    def training(self) -> dict[str, Any]:
        """Of the main model: its best and its last step, whether the learning rate had decayed by then, and whether the
        number of steps was decided on folds."""
        stores = self._stores(MAIN)
        best, last = (max(store.steps, default=0) for store in stores) if stores else (0, 0)
        rates = learning_rates(self.config.optim, self.task.steps(MAIN))
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            decayed = bool(np.asarray(rates(max(last - 1, 0))) < _DECAYED * self.config.optim.learning_rate)
        fitted = self.calibration()
        chosen = self.run.get("chosen", {})
        decided = "steps" in chosen
        return {
            "best": best,
            "last": last,
            "decayed": decayed,
            "decided": decided,
            "limited": decided and chosen["steps"] >= chosen.get("most_steps", np.inf),
            "calibration": fitted and fitted.as_json(),
        }

    def unfinished(self, names: Collection[str] = ()) -> list[str]:
        """One warning per model, of these or of all, whose training or calibration is not finished."""
        out = []
        for name in names or self.task.names:
            stores = self._stores(name)
            done = max((step for store in stores or () for step in store.steps), default=0)
            ended = stores is not None and any(stores[1].metrics(step).get(ENDED) for step in stores[1].steps)
            if done < self.task.steps(name) and not ended:
                whole = self.task.steps(name)
                out.append(f"{name} model: training is unfinished, step {done} of {whole}; run launch.train again")
            elif name == MAIN and not self._calibrated():
                out.append(f"{name} model: not calibrated, so nothing guards against a loss; run launch.train again")
        return out

    def _calibrated(self) -> bool:
        """Whether the main model has the calibration of its checkpoint, or needs none."""
        task = self.task
        if not isinstance(task, RewardTask) or not can_be_calibrated(task.model()):
            return True
        fitted = self.calibration()
        return fitted is not None and fitted.step == self.best_step(MAIN)

    def _stores(self, name: str) -> tuple[Checkpoints, Checkpoints] | None:
        """The best and the latest checkpoints of a model, read-only; None before the first checkpoint."""
        parent = self.directory(name) / "checkpoints"
        if not any(parent.glob("*/*")):
            return None
        best, latest = (Checkpoints(parent / kind, 1, read_only=True) for kind in ("best", "latest"))
        return (best, latest) if best.steps or latest.steps else None


def model_directory(path: Path, name: str) -> Path:
    """The directory of a model's checkpoints and metrics in a work directory."""
    return path if name == MAIN else path / "baselines" / name


def read_run(path: Path) -> dict[str, Any]:
    """The content of the run.json of a work directory; {} if there is none.

    Raises:
      UserError: it is damaged, or of another version.
    """
    file = path / "run.json"
    run = read_json(file, sealed=True) if file.is_file() else {}
    if run and run.get("format") != FORMAT:
        raise UserError(f"{path}: made by another version of fssa_jax; train again in a new directory")
    return run


def has_checkpoints(path: Path) -> bool:
    """Whether anything was trained here. A directory without checkpoints may be started anew."""
    return (path / "config.json").is_file() and any(path.glob("**/checkpoints/*/*"))


def write_settings(path: Path, config: Config, facts: dict[str, Any]) -> None:
    """Writes run.json and config.json, each with its checksum."""
    write_text(path / "run.json", json.dumps(with_checksum({"format": FORMAT} | facts), indent=2))
    write_text(path / "config.json", to_json(config))


def open_task(path: Path, config: Config, dataset: Dataset, at: str = "", base: Base | None = None) -> AnyTask:
    """The task of a work directory whose data is stored.

    Args:
      path: the work directory.
      config: its configuration.
      dataset: its data.
      at: current directory of its language model, if it has moved.
      base: the language model, if it is already in memory.

    Raises:
      UserError: tokens are missing, or the language model is missing or another one.
    """
    if isinstance(config, RewardConfig):
        return RewardTask(config, dataset)
    tokens = load_tokens(path / "data")
    if tokens is None:
        raise UserError(f"{path}: no data/tokens.npz; train into a new --workdir")
    run = read_run(path)
    if base is None:
        base = _load_base(path, config, at, run.get("date", ""))
    if run.get("base") not in (None, base.fingerprint):
        raise UserError(
            f"{path}: its adapters are of another language model than {base.directory}; name the base that it was "
            "trained with"
        )
    of_texts = featuriser_of_texts(dataset.featuriser)
    if isinstance(of_texts, EncoderFeaturiser):
        of_texts.share(config.policy.base, base.directory, config.policy.dtype, base.variables)
    if isinstance(config, SftConfig):
        return SftTask(config, dataset, base, tokens)
    layers = cached_layers(config, base, tokens)
    reference = stored_reference(base, tokens, path / "reference.npz", layers)
    return PolicyTask(config, dataset, base, tokens, reference, _load_ranked(path / RANKED, config))


def save_ranked(file: Path, table: ChoiceTable | None) -> None:
    """Stores the choices with ranked pairs, with a checksum; without any, removes what an earlier start left."""
    if table is None:
        file.unlink(missing_ok=True)
        return
    arrays = arrays_of(table)
    write_npz(file, arrays | {"crc": np.array(_checksum(arrays))})


def _load_ranked(file: Path, config: PolicyConfig) -> ChoiceTable | None:
    """What `save_ranked` stored; None if the configuration asks for none.

    Raises:
      UserError: it is missing or damaged.
    """
    if getattr(config.encoder, "pairs", "") != "ranked":
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if int(arrays.pop("crc")) != _checksum(arrays):
            raise ValueError("its checksum differs")
        return ChoiceTable(**arrays)
    except Exception as error:  # damaged archives surface as many kinds
        raise UserError(f"{file}: missing or damaged ({error}); train in a new --workdir") from error


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), crc)
    return crc


def _load_base(path: Path, config: PolicyConfig | SftConfig, at: str, date: str) -> Base:
    settings = config.policy
    # SFT of a new base starts from the initial model in start/.
    name = at or settings.base or str(path / "start")
    if is_gone(name):
        raise UserError(
            f"{path}: its language model is not in {name}; name the directory where it is now (--base, or "
            "--config.policy.base to train on)"
        )
    return load_base(name, settings.dtype, settings.remat, settings.attention, date)


def is_gone(name: str) -> bool:
    """Whether an absolute path names a directory or a GGUF file that no longer exists."""
    return Path(name).is_absolute() and not is_here(name)
