"""Warm start of a policy from a trained reward model (the teacher): its encoder, people, features and variables."""

import copy
import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fssa_jax.config import FrozenEncoder, NpBtl, PolicyConfig, RewardTraining, Rows, WarmEncoder
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, has_lists, number_texts, width_of_texts
from fssa_jax.data.ranked import ranked_pairs
from fssa_jax.errors import UserError
from fssa_jax.experiment.workdir import MET, Workdir, is_gone
from fssa_jax.lm.hub import is_here
from fssa_jax.ops.choices import join_choices
from fssa_jax.ops.episodes import take_choices
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import check_lists
from fssa_jax.types import ChoiceTable, Comparisons, PyTree

_log = logging.getLogger(__name__)


def teacher(config: PolicyConfig) -> Workdir | None:
    """The work directory of the reward model in `config.encoder.init_from`; None for a new encoder.

    Raises:
      UserError: it is not the work directory of an NP-BTL model.
    """
    if not isinstance(config.encoder, FrozenEncoder | WarmEncoder) or not config.encoder.init_from:
        return None
    path = config.encoder.init_from
    work = Workdir.open(Path(path))
    if not isinstance(work.task, RewardTask):
        raise UserError(f"config.encoder.init_from: {path} is no work directory of a reward model; give an np_btl one")
    if not isinstance(work.config.model, NpBtl):
        kind = type(work.config.model).__name__
        raise UserError(f"config.encoder.init_from: {path} is a {kind} model, which reads no choices")
    return work


def teacher_variables(config: PolicyConfig) -> PyTree | None:
    """The variables of the teacher; None without a teacher."""
    work = teacher(config)
    found = work.trained() if work is not None else None
    return None if found is None else found[0]


def fingerprint_of_teacher(config: PolicyConfig) -> str | None:
    """Fingerprint of the variables of the teacher; None without a teacher."""
    variables = teacher_variables(config)
    if variables is None:
        return None
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def take_over_settings(config: PolicyConfig) -> PolicyConfig:
    """The configuration with the teacher's model settings, and its data settings if its data are used.

    Raises:
      UserError: a given setting differs from the teacher's.
    """
    work = teacher(config)
    if work is None:
        return config
    source = config.encoder.init_from  # type: ignore[union-attr]
    fitted = work.calibration()
    if fitted is not None and not fitted.helps:
        said = "%s: choices are not shown to help its validation people; a policy that follows them may do no better"
        _log.warning(said + " than one for everybody", source)
    _refuse_other("encoder.model", config.encoder.model, work.config.model, source)  # type: ignore[union-attr]
    encoder = dataclasses.replace(config.encoder, model=copy.deepcopy(work.config.model))  # type: ignore[type-var]
    config = dataclasses.replace(config, encoder=encoder)
    if not _takes_data_of(config, work):
        return config
    if type(config.data) is type(work.config.data):
        _refuse_other("data", config.data, work.config.data, source)
    else:
        _log.info("using the people and texts of %s", source)
    return dataclasses.replace(config, data=copy.deepcopy(work.config.data))


def _refuse_other(key: str, given: Any, theirs: Any, source: str) -> None:
    """Raises `UserError` for a given setting that differs from the one in `source`; defaults do not count as given."""
    usual = type(given)()
    for field in dataclasses.fields(given):
        name, wanted, default = f"{key}.{field.name}", getattr(given, field.name), getattr(usual, field.name)
        before = getattr(theirs, field.name, None)
        if dataclasses.is_dataclass(wanted):
            if type(wanted) is type(before):
                _refuse_other(name, wanted, before, source)
                continue
            name, wanted, default, before = f"{name}.kind", *(type(x).__name__ for x in (wanted, default, before))
        if field.name != "path" and wanted not in (before, default):
            raise UserError(
                f"config.{name}: {source} was trained with {before!r}, not {wanted!r}; give that, or train the encoder "
                "with this one too"
            )


def _takes_data_of(config: PolicyConfig, reward: Workdir) -> bool:
    """Whether the policy uses the people and texts of the teacher's work directory."""
    ours, theirs = config.data, reward.config.data
    if isinstance(ours, Rows):
        return not ours.path or ours.path == getattr(theirs, "path", None)
    return type(ours) is type(theirs)


def load_people(config: PolicyConfig, path: Path) -> Dataset:
    """The policy's people and texts, with the features that its encoder was trained on.

    Raises:
      UserError: people, texts or features do not match the teacher's.
    """
    # Benchmarks have as many targets as for reward models, whatever the sizes of batches and evaluation.
    targets = max(RewardTraining().targets, config.train.targets, config.evaluate.targets)
    work = teacher(config)
    if work is not None and _takes_data_of(config, work):
        return work.dataset
    dataset = load_dataset(config.data, max(config.evaluate.k), targets, path / "embedding")
    if work is None:
        return dataset
    if has_lists(dataset):
        check_lists(work.config.model, config.data.path)  # type: ignore[union-attr]
    source = work.path
    if work.config.model.learn_texts == "yes":
        raise UserError(
            f"config.encoder.init_from: the model of {source} knows only the texts of its own data; give the same "
            "data, or train it with --config.model.learn_texts=no"
        )
    # Of texts alone: only one of the two may have thresholds, and each has its own quantities.
    width, wanted = (width_of_texts(data) for data in (dataset, work.dataset))
    if getattr(config.data, "features", "auto") != "auto" and width != wanted:
        raise UserError(
            f"config.encoder.init_from: {source} reads features of width {wanted}, these data have width {width}; "
            "leave config.data.features at auto to compute the same features"
        )
    met = set(work.dataset.splits["train"].users)
    again = sorted(met & {*dataset.splits["val"].users, *dataset.splits["test"].users})
    if again:
        raise UserError(
            f"config.encoder.init_from: {source} was trained on {len(again)} people who are held out here "
            f"({', '.join(again[:3])} …); give the same splits (split_user)"
        )
    dataset.featuriser = work.dataset.featuriser
    dataset.features = dataset.featuriser.transform(dataset.texts)
    dataset.report[MET] = sorted(met | set(work.dataset.splits["val"].users))
    return dataset


def ranked_table(config: PolicyConfig, dataset: Dataset) -> ChoiceTable | None:
    """The training choices with targets that the teacher ranked, at z of all choices of a person; None if not asked.

    As in the training of the policy, z is the mean, and is not calibrated.

    Raises:
      UserError: there is no teacher.
    """
    encoder = config.encoder
    if not isinstance(encoder, FrozenEncoder) or encoder.pairs != "ranked":
        return None
    work = teacher(config)
    if work is None or not isinstance(work.task, RewardTask):
        raise UserError("config.encoder.pairs: ranked needs a trained reward model; give config.encoder.init_from")
    model, (trained, _) = work.task.model(), cast(Any, work.trained())
    variables = {"params": trained["params"]}
    table, features = dataset.splits["train"].table, jnp.asarray(dataset.features)
    all_choices = jax.tree.map(jnp.asarray, table)

    @jax.jit
    def worth(variables: PyTree, features: Array, choices: ChoiceTable, users: Array, ids: Array) -> Array:
        def of_user(user: Array) -> Comparisons:
            every = jnp.arange(choices.chosen.shape[2])
            return join_choices(*(take_choices(choices, user, p, every, choices.count[user, p]) for p in (0, 1)))

        q: Any = model.apply(variables, jax.vmap(of_user)(users), features, method="infer")
        out: Any = model.apply(variables, ids, q.mean[None], features, method="rewards")
        return out[0, ..., 0]

    def rewards(users: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.asarray(worth(variables, features, all_choices, jnp.asarray(users), jnp.asarray(ids)))

    number = number_texts((text[0], "") for text in dataset.texts)
    # A threshold is no response to any prompt.
    prompts = np.array([number[text[0], ""] for text in dataset.texts])
    prompts = np.where(dataset.thresholds, len(number) + np.arange(len(prompts)), prompts)
    return ranked_pairs(table, prompts, rewards, np.random.default_rng(config.seed))


def with_whole_paths(config: Any) -> Any:
    """The configuration with absolute paths: later programs may run in another working directory."""
    policy = dataclasses.replace(config.policy, base=_whole_path(config.policy.base))
    config = dataclasses.replace(config, policy=policy)
    if init_from := getattr(getattr(config, "encoder", None), "init_from", ""):
        config = dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, init_from=_whole_path(init_from))
        )
    return config


def _whole_path(name: str) -> str:
    return str(Path(name).resolve()) if name and is_here(name) else name


def rename_moved(before: Any, config: Any) -> Any:
    """The configuration of a work directory, with directories that no longer exist replaced by those given now.

    Language model and encoder are identified by their contents.
    """
    if is_gone(before.policy.base):
        before = dataclasses.replace(before, policy=dataclasses.replace(before.policy, base=config.policy.base))
    if is_gone(getattr(getattr(before, "encoder", None), "init_from", "")):
        named = getattr(config.encoder, "init_from", "")
        before = dataclasses.replace(before, encoder=dataclasses.replace(before.encoder, init_from=named))
    return before
