"""From rows, ratings or a benchmark to a prepared directory, or to rows in the format of TRL."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax

from fssa_jax.config import Chat, Data, Evaluation, RewardTraining, Rows, Styles, Synthetic, UltraFeedback
from fssa_jax.config.fields import check_fields, group
from fssa_jax.data import build, dataset
from fssa_jax.data.dataset import log_left_out, log_left_out_rows
from fssa_jax.data.reading import read_source
from fssa_jax.data.row_dataset import with_source_splits
from fssa_jax.data.rows import Row
from fssa_jax.data.summary import data_warnings, summary
from fssa_jax.data.tokenised import without_thresholds
from fssa_jax.errors import UserError
from fssa_jax.files import write_text
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.hub import find_checkpoint
from fssa_jax.lm.messages import messages_of
from fssa_jax.lm.token_table import Truncate, encode_table
from fssa_jax.lm.tokenizer import check_vocabulary, load_tokenizer
from fssa_jax.train import parallel

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class PrepareConfig:
    """The --config flags of launch.prepare_data."""

    data: UltraFeedback = group(UltraFeedback)


def prepare(
    data: UltraFeedback, source: str, out: Path, tokenizer: str = "", max_length: int = 512, truncate: Truncate = "drop"
) -> dict[str, Any]:
    """Writes the directory atomically; returns its report: what it holds, in words too, and what was left out.

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
    prepared.report["summary"] = summary(prepared)
    prepared.report["warnings"] = data_warnings(prepared)
    tokens = None
    if loaded is not None:
        tokens = encode_table(
            loaded,
            without_thresholds(prepared.texts),
            max_length=max_length,
            truncate=truncate,
            unfinished=prepared.unfinished,
        )
        prepared.report["tokens"] = {"tokenizer": tokenizer, "max_length": max_length, "truncate": truncate}
        prepared.report["too_long_texts"] = tokens.too_long
    parallel.wait_for_all("embedded")  # the vectors in `scratch` are read by every process
    if jax.process_index() == 0:
        dataset.save(prepared, out, tokens)
        shutil.rmtree(scratch, ignore_errors=True)
    return prepared.report


def settings_of(data: UltraFeedback, source: str) -> Data:
    """The settings of a built-in benchmark, or of rows."""
    same = {"split_seed": data.split_seed}
    if source in ("styles", "chat"):
        kind, usual = Styles if source == "styles" else Chat, type(data)()
        names = ("features", "components", "text_encoder", "manner")
        given = {name: getattr(data, name) for name in names if getattr(data, name) != getattr(usual, name)}
        return kind(**same, **given)
    if source in ("synthetic", "synthetic_published"):
        return Synthetic(**same, published=source == "synthetic_published")
    return dataclasses.replace(data, path=source)


def write_trl(data: UltraFeedback, source: str, out: Path) -> tuple[int, int]:
    """Writes choices as TRL's conversational preference rows with user_id, as JSONL; returns how many of each.

    A choice of one among n becomes n − 1 rows with the same chosen response: TRL knows only pairs.

    Raises:
      UserError: bad rows, or a benchmark, which is not made of rows.
    """
    if out.exists():
        raise UserError(f"{out}: exists; give another --out")
    check_fields(data)
    settings = settings_of(data, source)
    if not isinstance(settings, Rows):
        raise UserError(f"--to=trl: {source} is a built-in benchmark; give a file of rows")
    rows, report = read_source(settings)
    rows, _ = with_source_splits(rows, data.split_seed)
    alone = sum(row.alone for row in rows)
    if alone:
        _log.warning("%d choices of thumbs and ratings left out: a row of TRL's preferences is a pair", alone)
        rows = [row for row in rows if not row.alone]
    log_left_out_rows(report)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for row in rows for record in trl_records(row)]
    write_text(out, "".join(lines))
    return len(rows), len(lines)


def trl_records(row: Row) -> list[dict[str, Any]]:
    """A choice in the format of TRL: `prompt`, `chosen` and `rejected` are lists of messages."""
    optional = {name: getattr(row, name) for name in ("group", "split_user", "split_item", "pool", "situation")}
    return [
        {
            "user_id": row.user,
            "prompt": messages_of(row.prompt),
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": other}],
            **{name: value for name, value in optional.items() if value},
        }
        for other in row.responses[1:]
    ]
