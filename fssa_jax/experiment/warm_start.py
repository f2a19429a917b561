"""What a policy takes over from the reward model whose encoder it starts from: model, people, features, parameters."""

import copy
import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax.config.policy import PolicyConfig
from fssa_jax.config.reward import Config, DataConfig, ModelConfig, TrainConfig, read_json
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset
from fssa_jax.errors import UserError
from fssa_jax.evaluate.evaluate import Trained
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.tasks.reward import resolve

_log = logging.getLogger(__name__)

MET = "people_of_the_encoder"  # of the data set's report, where the encoder was trained on other rows


def is_policy(workdir: Path) -> bool:
    """Whether a work directory is a policy's."""
    path = workdir / "config.json"
    return path.is_file() and "policy" in read_json(path)


def warm_encoder(config: PolicyConfig) -> Trained | None:
    """The trained reward model that `config.encoder.init_from` names."""
    if config.is_sft or config.policy.adapter.latent == "none" or not config.encoder.init_from:
        return None
    reward = _reward_workdir(config.encoder.init_from)
    return reward.trained()


def fingerprint_of_encoder(config: PolicyConfig) -> str | None:
    """Of the parameters that `warm_encoder` gives; None without."""
    trained = warm_encoder(config)
    if trained is None:
        return None
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trained.variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _reward_workdir(path: str) -> Workdir:
    directory = Path(path)
    if is_policy(directory):
        raise UserError(
            f"config.encoder.init_from: {path} is the work directory of a policy; give one of an np_btl model"
        )
    work = Workdir.open(directory)
    if work.config.model.kind != "np_btl":
        raise UserError(f"config.encoder.init_from: {path} is a {work.config.model.kind} model, which reads no choices")
    return work


def with_whole_paths(config: PolicyConfig) -> PolicyConfig:
    """The configuration with the directories that it names as absolute paths: programs may run from elsewhere later."""
    policy, encoder = copy.copy(config.policy), copy.copy(config.encoder)
    policy.base, encoder.init_from = _whole_path(policy.base), _whole_path(encoder.init_from)
    return dataclasses.replace(config, policy=policy, encoder=encoder)


def _whole_path(name: str) -> str:
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def moved(before: PolicyConfig, config: PolicyConfig) -> PolicyConfig:
    """What a work directory was trained with, with directories that are gone called by the names that are given now:
    language model and encoder are known by their contents."""
    policy, encoder = copy.copy(before.policy), copy.copy(before.encoder)
    if gone(policy.base):
        policy.base = config.policy.base
    if gone(encoder.init_from):
        encoder.init_from = config.encoder.init_from
    return dataclasses.replace(before, policy=policy, encoder=encoder)


def gone(name: str) -> bool:
    """Whether a whole path names no directory any more."""
    return Path(name).is_absolute() and not Path(name).is_dir()


def adopted(config: PolicyConfig) -> PolicyConfig:
    """The configuration with the model of the encoder's work directory, and its data settings where its data are taken.

    Raises:
      UserError: a setting is given that was another there.
    """
    if config.is_sft or config.policy.adapter.latent == "none" or not config.encoder.init_from:
        return config
    reward = _reward_workdir(config.encoder.init_from)
    _refuse_other("model", ModelConfig(), reward.config.model, config.model, config.encoder.init_from)
    config = dataclasses.replace(config, model=copy.deepcopy(reward.config.model))
    if not _takes_data_of(config, reward):
        return config
    _refuse_other("data", DataConfig(), reward.config.data, config.data, config.encoder.init_from)
    if config.data.source != reward.config.data.source:
        _log.info("people and texts are those of %s (%s)", config.encoder.init_from, reward.config.data.source)
    return dataclasses.replace(config, data=copy.deepcopy(reward.config.data))


def _refuse_other(key: str, default: Any, before: Any, given: Any, source: str) -> None:
    """Raises `UserError` for a setting that is given, but was another in `source`; a default is no wish."""
    for field in dataclasses.fields(default):
        name = f"{key}.{field.name}"
        usual, old, new = (getattr(config, field.name) for config in (default, before, given))
        if dataclasses.is_dataclass(old):
            _refuse_other(name, usual, old, new, source)
        elif name not in ("data.source", "data.path") and new not in (old, usual):
            raise UserError(
                f"config.{name}: {source} was trained with {old!r}, not {new!r}; give that, or train the encoder with "
                "this one too"
            )


def _takes_data_of(config: PolicyConfig, reward: Workdir) -> bool:
    """Whether the people and texts are those of the encoder's work directory."""
    same = (config.data.source, config.data.path) == (reward.config.data.source, reward.config.data.path)
    return same or (config.data.source == "rows" and not config.data.path)


def load_people(config: PolicyConfig, path: Path) -> Dataset:
    """The configuration's people and texts, with the features that the encoder was trained on."""
    plain = _reward_config(config)
    # Benchmarks are made with as many targets as reward models have there, whatever a batch or the scoring takes.
    plain.train.targets = max(TrainConfig().targets, config.train.targets, config.evaluate.targets)
    if config.is_sft or config.policy.adapter.latent == "none" or not config.encoder.init_from:
        return load_dataset(plain, path / "embedding")
    reward = _reward_workdir(config.encoder.init_from)
    if _takes_data_of(config, reward):
        return reward.dataset
    dataset = load_dataset(plain, path / "embedding")
    if reward.config.model.learn_texts == "yes":
        raise UserError(
            f"config.encoder.init_from: the model of {config.encoder.init_from} knows the texts of its own data alone; "
            "give the same data, or train it with --config.model.learn_texts=no"
        )
    width, wanted = dataset.features.shape[1], reward.dataset.features.shape[1]
    if config.data.features != "auto" and width != wanted:
        raise UserError(
            f"config.encoder.init_from: {config.encoder.init_from} reads features of {wanted} numbers, these data have "
            f"{width}; leave config.data.features at auto to have them made as they were there"
        )
    met = set(reward.dataset.splits["train"].users)
    again = sorted(met & {*dataset.splits["val"].users, *dataset.splits["test"].users})
    if again:
        raise UserError(
            f"config.encoder.init_from: {config.encoder.init_from} was trained on {len(again)} people who are held out "
            f"here ({', '.join(again[:3])} …); give the same splits (split_user)"
        )
    dataset.featuriser = reward.dataset.featuriser
    dataset.features = dataset.featuriser.transform(dataset.texts)
    dataset.report[MET] = sorted(met | set(reward.dataset.splits["val"].users))
    return dataset


def resolved(config: PolicyConfig, dataset: Dataset, quiet: bool = False) -> PolicyConfig:
    """The configuration with what the data decide."""
    config = copy.deepcopy(config)
    if config.is_sft:
        return config
    decided = resolve(_reward_config(config), dataset, quiet)
    config.model = decided.model
    config.train.max_context, config.train.targets = decided.train.max_context, decided.train.targets
    return config


def _reward_config(config: PolicyConfig) -> Config:
    """The settings of the data and of the encoder as those of a reward model."""
    sizes = TrainConfig(max_context=config.train.max_context, targets=config.train.targets)
    return Config(seed=config.seed, data=config.data, model=config.model, train=sizes, evaluate=config.evaluate)
