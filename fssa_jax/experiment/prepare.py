"""From rows, ratings or a benchmark to a prepared directory: split, embedded, and tokenised where asked for."""

import copy
import shutil
from pathlib import Path
from typing import Any

import jax

from fssa_jax.config import reward as configs
from fssa_jax.config.reward import Config
from fssa_jax.data import build, dataset
from fssa_jax.data.benchmarks.synthetic import SOURCES
from fssa_jax.data.dataset import log_left_out
from fssa_jax.data.token_table import Truncate, encode_table
from fssa_jax.errors import UserError
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.hub import find_checkpoint
from fssa_jax.lm.tokenizer import check_vocabulary, load_tokenizer
from fssa_jax.train import parallel


def prepare(
    config: Config, source: str, out: Path, tokenizer: str = "", max_length: int = 512, truncate: Truncate = "drop"
) -> dict[str, Any]:
    """Writes the directory whole; returns counts of what is in it and what was left out.

    Embeddings that a killed run has made, in OUT.embedding, are not made again.

    Args:
      source: rows in any format of `read_records`, or the name of a benchmark.
      tokenizer: directory or hub name of a model whose tokens of every text are written as well.
      max_length, truncate: see `encode_table`.

    Raises:
      UserError: bad rows or settings, or `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not dataset.is_prepared(out):
        raise UserError(f"{out}: exists and is not a prepared directory; give another --out")
    config = copy.deepcopy(config)
    configs.check(config)
    if source in ("styles", *SOURCES):
        config.data.source = source
    else:
        config.data.source, config.data.path = "rows", source
    loaded = None
    if tokenizer:  # before the long work
        directory = find_checkpoint(tokenizer)
        loaded = load_tokenizer(directory)
        check_vocabulary(loaded, read_config(directory).vocabulary, directory)
    scratch = out.with_name(f"{out.name}.embedding")
    prepared = build.load_dataset(config, scratch)
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
