"""Opens work directories to go on training: the same configuration and data, or more steps where that is possible."""

import copy
import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax.config import BayesEncoder, Config, Dpo, Evaluation, NewEncoder, PolicyConfig, RewardConfig, SftConfig
from fssa_jax.config.experiment import read
from fssa_jax.config.fields import first_difference, read_json, to_dict
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import digest_of
from fssa_jax.data.dataset import Dataset, has_lists
from fssa_jax.errors import UserError
from fssa_jax.evaluate.episodes import reached
from fssa_jax.experiment.warm_start import fingerprint_of_teacher, rename_moved
from fssa_jax.experiment.workdir import Workdir, model_directory, open_task, read_run, write_settings
from fssa_jax.files import whole_directory
from fssa_jax.tasks.reward_models import fit_sizes, resolve, resolve_model
from fssa_jax.tasks.task import POPULATION
from fssa_jax.train.state import learning_rates

_log = logging.getLogger(__name__)

_OF_POPULATION = (
    *("users", "targets", "population_steps", "population_learning_rate", "accumulate", "steps_per_call"),
    *("validate_every", "checkpoint_every"),
)


def resolve_config(config: Config, dataset: Dataset, quiet: bool = False) -> Any:
    """The configuration with all settings that depend on the data filled in.

    The k to evaluate that nobody chose, which are the default, are those that half of the people have choices for.
    """
    config = copy.deepcopy(config)
    if not isinstance(config, SftConfig) and config.evaluate.k == Evaluation().k:
        config.evaluate.k = reached(config.evaluate.k, [dataset.splits[name] for name in ("val", "test")])
        if config.evaluate.k != Evaluation().k and not quiet:
            _log.info("less than half of the people have more choices: config.evaluate.k=%s", config.evaluate.k)
    if isinstance(config, RewardConfig):
        return resolve(config, dataset, quiet)
    if isinstance(config, PolicyConfig):
        _check_objective(config, dataset)
        fit_sizes(config.train, config.data, dataset, quiet)
        if isinstance(config.encoder, NewEncoder):
            config.encoder.model = resolve_model(config.encoder.model, dataset, quiet)
    return config


def _check_objective(config: PolicyConfig, dataset: Dataset) -> None:
    """Raises `UserError` for a loss that is not defined for choices of one among more than two."""
    if has_lists(dataset) and (not isinstance(config.objective, Dpo) or config.objective.label_smoothing):
        raise UserError(
            "config.objective: choices among more than two responses need Dpo without label smoothing; give that"
        )


def check_same(path: Path, before: Config, config: Config) -> None:
    """Raises `UserError` if a work directory was trained with another configuration, naming the first difference."""
    old_values, new_values = ({"kind": type(c).__name__} | to_dict(c) for c in (before, config))
    found = first_difference(old_values, new_values)
    if found:
        name, old, new = found
        if name == "train.steps" and new > old:
            raise UserError(
                f"{path}: was trained for {old} steps with a learning rate that decays until then; to train for {new}, "
                f"give another --workdir and --config.data.path={path}, which takes over its data, features and "
                "population model"
            )
        raise UserError(
            f"{path}: was trained with config.{name}={old!r}, not {new!r}; give the same configuration, or another "
            "--workdir"
        )


def with_choice(config: RewardConfig, before: RewardConfig, chosen: Mapping[str, Any]) -> RewardConfig:
    """A configuration with what was decided for `before`, the stored one of its work directory.

    Args:
      chosen: the decisions of its run.json.
    """
    config = copy.deepcopy(config)
    own: Any = config.model
    kept: Any = copy.deepcopy(before.model)
    if isinstance(getattr(kept, "encoder", None), BayesEncoder) and isinstance(
        getattr(own, "encoder", None), BayesEncoder
    ):
        encoder = dataclasses.replace(own.encoder, observations=kept.encoder.observations, prior=kept.encoder.prior)
        decided = {"response": kept.response, "width": kept.width, "parts": kept.parts}
        config.model = dataclasses.replace(own, encoder=encoder, **decided)
    config.optim.learning_rate = before.optim.learning_rate
    config.train.factor_steps = before.train.factor_steps
    for penalty in ("response_penalty", "population_penalty", "text_penalty", "text_bias_penalty"):
        setattr(config.objective, penalty, getattr(before.objective, penalty))
    if "steps" in chosen:  # their number was decided too
        of_training = ("steps", "population_steps", "steps_per_call", "validate_every", "checkpoint_every", "patience")
        for setting in of_training:
            setattr(config.train, setting, getattr(before.train, setting))
    return config


def resume(config: Any, path: Path) -> Workdir:
    """Opens an existing work directory, after checking that it has the same configuration and data.

    Training may be longer than before if the learning rates of the steps so far stay the same.
    """
    before: Any = read(path / "config.json")
    dataset = datasets.load(path / "data")
    _check_source(path, before, dataset)
    now, stored = resolve_config(config, dataset, quiet=True), before
    if not isinstance(config, SftConfig) and config.evaluate.k == Evaluation().k and hasattr(before, "evaluate"):
        now.evaluate.k = before.evaluate.k
    if getattr(now, "auto", "no") == "yes" and "chosen" in read_run(path):
        now = with_choice(now, before, read_run(path)["chosen"])
    if not isinstance(config, RewardConfig) and type(before) is type(config):
        stored = rename_moved(before, config)
    longer = _extended(stored, now)
    check_same(path, longer, now)
    if isinstance(longer, PolicyConfig):
        _check_teacher(path, longer)
    if longer.train.steps != before.train.steps:
        _log.info("%s: extended from %d to %d steps", path, before.train.steps, longer.train.steps)
        train = dataclasses.replace(before.train, steps=longer.train.steps)
        before = dataclasses.replace(before, train=train)
        write_settings(path, before, read_run(path))
    if isinstance(config, RewardConfig):
        return Workdir(path, open_task(path, before, dataset))
    # Features were computed under the stored name of the base.
    task = open_task(path, before, dataset, longer.policy.base)
    return Workdir(path, dataclasses.replace(task, config=longer))


def _extended(before: Any, now: Any) -> Any:
    """The stored configuration with the larger number of steps, if the learning rates of its steps stay the same."""
    old, new = before.train.steps, now.train.steps
    if type(before) is not type(now) or new <= old:
        return before
    steps = np.arange(old)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        rates = [np.asarray(learning_rates(before.optim, number)(steps)) for number in (old, new)]
    if not np.array_equal(rates[0], rates[1]):
        return before
    return dataclasses.replace(before, train=dataclasses.replace(before.train, steps=new))


def _check_source(path: Path, config: Any, dataset: Dataset) -> None:
    """Raises `UserError` if the rows were changed since the work directory was made from them."""
    before = dataset.report.get("source_digest", "")
    now = digest_of(config.data) if before else ""
    if now and now != before:
        raise UserError(
            f"{config.data.path}: changed since {path} was made from it; restore it, or train into a new --workdir"
        )


def _check_teacher(path: Path, config: PolicyConfig) -> None:
    """Raises `UserError` if the encoder's reward model is not the one that the training started with."""
    file = path / "run.json"
    before = read_json(file).get("encoder") if file.is_file() else None
    if before not in (None, fingerprint_of_teacher(config)):
        raise UserError(
            f"{path}: {getattr(config.encoder, 'init_from', '')} is another reward model than it was started with; "
            "name that one in config.encoder.init_from"
        )


def take_over_population(config: Any, path: Path) -> None:
    """Copies the population model of a work directory that is the source of the data, if it was trained alike."""
    source = Path(getattr(config.data, "path", ""))
    if not isinstance(config, RewardConfig) or not (source / "config.json").is_file():
        return
    before = read(source / "config.json")
    trained = model_directory(source, POPULATION)
    same = isinstance(before, RewardConfig) and _of_population(before) == _of_population(config)
    if same and trained.is_dir():
        _log.info("the population model of %s is taken over", source)
        with whole_directory(model_directory(path, POPULATION)) as target:
            shutil.copytree(trained, target, dirs_exist_ok=True)


def _of_population(config: RewardConfig) -> dict[str, Any]:
    """What the training of a population model depends on."""
    settings = to_dict(config)
    train = {key: value for key, value in settings["train"].items() if key in _OF_POPULATION}
    same = {key: settings[key] for key in ("seed", "model", "objective", "optim")}
    return same | {"train": train, "groups": settings["data"].get("groups")}
