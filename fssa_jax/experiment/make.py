"""Makes work directories: data, tokens, base and reference, before anything is trained."""

import copy
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fssa_jax.config import (
    Config,
    Evaluation,
    NewEncoder,
    NewModel,
    PolicyConfig,
    RewardConfig,
    RewardTraining,
    SftConfig,
    check,
    to_json,
)
from fssa_jax.config.experiment import read
from fssa_jax.config.fields import first_difference, read_json, to_dict
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, log_left_out
from fssa_jax.data.tokenised import only_with_tokens, tokenise
from fssa_jax.errors import UserError
from fssa_jax.experiment.warm_start import (
    fingerprint_of_teacher,
    load_people,
    rename_moved,
    take_over_settings,
    with_whole_paths,
)
from fssa_jax.experiment.workdir import OWN, Workdir, has_checkpoints, open_task
from fssa_jax.files import write_text
from fssa_jax.lm.base import Base, load_base, new_base
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.tasks.reward import fit_sizes, resolve, resolve_model
from fssa_jax.train import parallel


def make(config: Config, path: Path) -> Workdir:
    """Makes a work directory, or opens it after checking that it has the same configuration.

    Settings that depend on the data are resolved. The data is stored in the directory, so that later programs need only
    the directory.

    Raises:
      UserError: bad data, settings, base or encoder, or a directory that holds other files.
    """
    if isinstance(config, PolicyConfig | SftConfig):
        config = with_whole_paths(config)
    if isinstance(config, PolicyConfig):
        config = take_over_settings(config)
    check(config)
    mode = _check_parts(config)
    if has_checkpoints(path):
        return _resume(config, path)
    _refuse_foreign(path)
    if path.is_dir():
        (path / "reference.npz").unlink(missing_ok=True)  # left by a start that failed
    dataset = _load(config, path)
    log_left_out(dataset)
    base, tokens = None, None
    if not isinstance(config, RewardConfig):
        base = _base(config, dataset, path)
        tokens = tokenise(base, dataset.texts, config.policy.max_length, config.policy.truncate)
        only_with_tokens(dataset, tokens)
    config = resolve_config(config, dataset)
    if not isinstance(config, SftConfig):
        _check_context_sizes(config.evaluate.k, dataset)
    datasets.save(dataset, path / "data", tokens)
    facts: dict[str, Any] = {
        "seed": config.seed,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jax": jax.__version__,
        "python": sys.version.split()[0],
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "parallel": mode,
    }
    if base is not None:
        facts["base"] = base.fingerprint
    if isinstance(config, PolicyConfig):
        facts["encoder"] = fingerprint_of_teacher(config)
    write_text(path / "run.json", json.dumps(facts, indent=2))
    write_text(path / "config.json", to_json(config))
    shutil.rmtree(path / "embedding", ignore_errors=True)
    return Workdir(path, open_task(path, config, dataset, base=base))


def resolve_config(config: Config, dataset: Dataset, quiet: bool = False) -> Any:
    """The configuration with all settings that depend on the data filled in."""
    if isinstance(config, RewardConfig):
        return resolve(config, dataset, quiet)
    config = copy.deepcopy(config)
    if isinstance(config, PolicyConfig):
        fit_sizes(config.train, config.data, dataset, quiet)
        if isinstance(config.encoder, NewEncoder):
            config.encoder.model = resolve_model(config.encoder.model, dataset, quiet)
    return config


def check_same(path: Path, before: Config, config: Config) -> None:
    """Raises `UserError` if a work directory was trained with another configuration, naming the first difference."""
    old_values, new_values = ({"kind": type(c).__name__} | to_dict(c) for c in (before, config))
    found = first_difference(old_values, new_values)
    if found:
        name, old, new = found
        raise UserError(
            f"{path}: was trained with config.{name}={old!r}, not {new!r}; give the same configuration, or another "
            "--workdir"
        )


def _resume(config: Any, path: Path) -> Workdir:
    """Opens an existing work directory, after checking that it has the same configuration."""
    before: Any = read(path / "config.json")
    dataset = datasets.load(path / "data")
    if isinstance(config, RewardConfig) or type(before) is not type(config):
        check_same(path, before, resolve_config(config, dataset, quiet=True))
        return Workdir(path, open_task(path, before, dataset))
    now = rename_moved(before, config)
    check_same(path, now, resolve_config(config, dataset, quiet=True))
    if isinstance(now, PolicyConfig):
        _check_teacher(path, now)
    # Features were computed under the stored name of the base.
    task = open_task(path, before, dataset, now.policy.base)
    return Workdir(path, dataclasses.replace(task, config=now))


def _check_parts(config: Any) -> str:
    """The parallel mode; checks that every device can divide its share of a batch into equal parts."""
    name, size = ("texts", config.train.texts) if isinstance(config, SftConfig) else ("users", config.train.users)
    mode = parallel.resolve(config.train.parallel, size, name)
    if mode == "pmap":
        parts = jax.device_count() * config.train.accumulate
        if size % parts:
            raise UserError(
                f"config.train.{name}: {size} cannot be shared by {jax.device_count()} devices that take "
                f"{config.train.accumulate} parts each; give a multiple of {parts}"
            )
    return mode


def _refuse_foreign(path: Path) -> None:
    """Raises `UserError` if a directory that is not yet a work directory holds other files."""
    if (path / "config.json").exists() or not path.is_dir():
        return
    foreign = sorted(p.name for p in path.iterdir() if p.name not in OWN)
    if foreign or ((path / "data").exists() and not datasets.is_prepared(path / "data")):
        raise UserError(f"{path}: holds other files ({', '.join(foreign) or 'data'}); give a new --workdir")


def _load(config: Config, path: Path) -> Dataset:
    if isinstance(config, PolicyConfig):
        return load_people(config, path)
    # A base is trained on the same people as the reward models.
    k, targets = Evaluation().k, RewardTraining().targets
    if isinstance(config, RewardConfig):
        k, targets = config.evaluate.k, config.train.targets
    return load_dataset(config.data, max(k), targets, path / "embedding")


def _base(config: PolicyConfig | SftConfig, dataset: Dataset, path: Path) -> Base:
    settings = config.policy
    if isinstance(config, SftConfig) and not settings.base:
        shape = new_decoder(config.policy.new)
        new_base(shape, (part for text in dataset.texts for part in text), path / "start", config.seed)
    name = settings.base or str(path / "start")
    base = load_base(name, settings.dtype, settings.remat, settings.attention)
    if isinstance(config, PolicyConfig):
        asked, positions = config.evaluate.generate, base.decoder.config.max_length
        if asked.people and asked.max_new >= positions:
            raise UserError(
                f"config.evaluate.generate.max_new: {asked.max_new} tokens and a prompt do not fit into the "
                f"{positions} positions of {base.directory}; give less"
            )
    return base


def new_decoder(new: NewModel) -> DecoderConfig:
    """The shape of a new model: a small Llama."""
    return DecoderConfig(
        vocabulary=new.vocabulary,
        width=new.width,
        layers=new.layers,
        heads=new.heads,
        groups=new.kv_heads,
        head_dim=new.width // new.heads,
        mlp_width=new.mlp_width,
        max_length=new.max_length,
        tied=True,
    )


def _check_context_sizes(ks: tuple[int, ...], dataset: Dataset) -> None:
    """Raises `UserError` if no test user has as many context choices as the largest k."""
    longest = int(np.asarray(dataset.splits["test"].table.count)[:, 0].max(initial=0))
    if max(ks) > longest:
        shorter = ",".join(str(k) for k in sorted({*(k for k in ks if k < longest), longest}))
        raise UserError(
            f"config.evaluate.k: {max(ks)} is larger than any context; the longest of a test user "
            f'has {longest} choices; give "--config.evaluate.k=({shorter},)" or more rows per user'
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
