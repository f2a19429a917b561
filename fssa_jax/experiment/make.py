"""Makes work directories: data, tokens, base and reference, before anything is trained."""

import logging
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
    NewModel,
    PolicyConfig,
    RewardConfig,
    RewardTraining,
    Rows,
    SftConfig,
    check,
)
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Dataset, log_left_out
from fssa_jax.data.summary import data_warnings, summary
from fssa_jax.data.thresholds import is_threshold
from fssa_jax.data.tokenised import only_pairs_to_predict, only_with_tokens, tokenise
from fssa_jax.errors import UserError
from fssa_jax.experiment.resume import resolve_config, resume, take_over_population
from fssa_jax.experiment.warm_start import (
    fingerprint_of_teacher,
    load_people,
    ranked_table,
    take_over_settings,
    with_whole_paths,
)
from fssa_jax.experiment.workdir import OWN, RANKED, Workdir, has_checkpoints, open_task, save_ranked, write_settings
from fssa_jax.files import is_ours
from fssa_jax.lm.base import Base, load_base, new_base
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.tasks.states import adapted_layers
from fssa_jax.train import parallel

_log = logging.getLogger(__name__)


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
        return resume(config, path)
    _refuse_foreign(path)
    if path.is_dir():
        (path / "reference.npz").unlink(missing_ok=True)  # left by a start that failed
    dataset = _load(config, path)
    log_left_out(dataset)
    base, tokens = None, None
    if not isinstance(config, RewardConfig):
        base = _base(config, dataset, path)
        settings = config.policy
        tokens = tokenise(base, dataset.texts, settings.max_length, settings.truncate, dataset.unfinished)
        only_with_tokens(dataset, tokens)
    if isinstance(config, PolicyConfig):
        only_pairs_to_predict(dataset, ("val", "test"))
    config = resolve_config(config, dataset)
    if not isinstance(config, SftConfig):
        _check_context_sizes(config.evaluate.k, dataset)
    if isinstance(config.data, Rows):
        for line in summary(dataset):
            _log.info("%s", line)
        for warning in data_warnings(dataset):
            _log.warning("%s", warning)
    datasets.save(dataset, path / "data", tokens)
    if isinstance(config, PolicyConfig):
        save_ranked(path / RANKED, ranked_table(config, dataset))
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
        facts |= {"base": base.fingerprint, "date": base.tokenizer.date}
    if isinstance(config, PolicyConfig):
        facts["encoder"] = fingerprint_of_teacher(config)
    write_settings(path, config, facts)
    take_over_population(config, path)
    shutil.rmtree(path / "embedding", ignore_errors=True)
    return Workdir(path, open_task(path, config, dataset, base=base))


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
    foreign = sorted(p.name for p in path.iterdir() if p.name not in OWN and not is_ours(p))
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
        new_base(
            shape,
            (part for text in dataset.texts if not is_threshold(text) for part in text),
            path / "start",
            config.seed,
        )
    name = settings.base or str(path / "start")
    base = load_base(name, settings.dtype, settings.remat, settings.attention)
    if isinstance(config, SftConfig) and config.policy.lora.rank:
        if base.lora is not None:
            raise UserError(f"config.policy.lora.rank: {name} is a LoRA; give its base, or rank 0 for all weights")
        adapted_layers(config.policy.lora, base.decoder.config, "config.policy.lora")
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
