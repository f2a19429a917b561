"""From rows, ratings or a benchmark to a prepared directory: split, embedded, and optionally tokenised."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax

from fssa_jax.config import Data, Evaluation, RewardTraining, Styles, Synthetic, UltraFeedback
from fssa_jax.config.fields import check_fields, group
from fssa_jax.data import build, dataset
from fssa_jax.data.dataset import log_left_out
from fssa_jax.errors import UserError
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.hub import find_checkpoint
from fssa_jax.lm.token_table import Truncate, encode_table
from fssa_jax.lm.tokenizer import check_vocabulary, load_tokenizer
from fssa_jax.train import parallel


@dataclasses.dataclass
class PrepareConfig:
    """The --config flags of launch.prepare_data."""

    data: UltraFeedback = group(UltraFeedback)


def prepare(
    data: UltraFeedback, source: str, out: Path, tokenizer: str = "", max_length: int = 512, truncate: Truncate = "drop"
) -> dict[str, Any]:
    """Writes the directory atomically; returns counts of its content and of what was left out.

    Embeddings of a killed run, in OUT.embedding, are reused.

    Args:
      data: how rows are read, split and embedded.
      source: rows in any format of `read_records`, or the name of a benchmark.
      tokenizer: directory or hub name of a model; the tokens of every text under its tokenizer are written too.
      max_length, truncate: see `encode_table`.

    Raises:
      UserError: bad rows or settings, or `out` holds other files.
    """
    if out.exists() and any(out.iterdir()) and not dataset.is_prepared(out):
        raise UserError(f"{out}: exists and is not a prepared directory; give another --out")
    check_fields(data)
    settings = settings_of(data, source)
    loaded = None
    if tokenizer:  # checked before the long work
        directory = find_checkpoint(tokenizer)
        loaded = load_tokenizer(directory)
        check_vocabulary(loaded, read_config(directory).vocabulary, directory)
    scratch = out.with_name(f"{out.name}.embedding")
    prepared = build.load_dataset(settings, max(Evaluation().k), RewardTraining().targets, scratch)
    log_left_out(prepared)
    tokens = None
    if loaded is not None:
        tokens = encode_table(loaded, prepared.texts, max_length=max_length, truncate=truncate)
        prepared.report["tokens"] = {"tokenizer": tokenizer, "max_length": max_length, "truncate": truncate}
        prepared.report["too_long_texts"] = tokens.too_long
    parallel.wait_for_all("embedded")  # the vectors in `scratch` are read by every process
    if jax.process_index() == 0:
        dataset.save(prepared, out, tokens)
        shutil.rmtree(scratch, ignore_errors=True)
    return {name: value for name, value in prepared.report.items() if not isinstance(value, list)}


def settings_of(data: UltraFeedback, source: str) -> Data:
    """The settings of a built-in benchmark, or of rows."""
    same = {"split_seed": data.split_seed}
    if source == "styles":
        texts = {"features": data.features, "components": data.components, "text_encoder": data.text_encoder}
        return Styles(**same, **texts)
    if source in ("synthetic", "synthetic_published"):
        return Synthetic(**same, published=source == "synthetic_published")
    return dataclasses.replace(data, path=source)
