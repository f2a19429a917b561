"""Reading preference rows from JSONL(.gz), CSV, Parquet, a `datasets` directory or a hub name.

A row is `user_id, prompt, response_a, response_b, choice` (0 = a, 1 = b), and optionally `item_id,
group, split_user, split_item, pool, attributes`. A bad row is an error that names file, row and column;
with on_error="skip" it is counted and listed instead.
"""

import csv
import dataclasses
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fssa_jax.errors import UserError

REQUIRED = ("user_id", "prompt", "response_a", "response_b", "choice")
_ALLOWED = {
    "split_user": ("train", "val", "test"),
    "split_item": ("train", "val", "test"),
    "pool": ("context", "target"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One checked choice; absent optional columns are ""."""

    user: str
    prompt: str
    chosen: str
    rejected: str
    group: str = ""
    split_user: str = ""
    split_item: str = ""
    pool: str = ""
    place: str = ""


@dataclasses.dataclass
class RowReport:
    """A report of the rows that were left out."""

    read: int = 0
    duplicates: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)


def read_rows(path: str, on_error: str = "raise", person: str = "") -> tuple[list[Row], RowReport]:
    """Reads and checks the rows of a file, directory or hub name; duplicates are kept once and counted.

    Args:
      on_error: "raise", or "skip" to list bad rows in the report.
      person: user_id of rows that lack one; "" if every row must name its user.

    Raises:
      UserError: the source cannot be read, a bad row (with on_error "raise"), or no usable row is left.
    """
    report = RowReport()
    rows: dict[tuple[str, str, str, str], Row] = {}
    required = REQUIRED[1:] if person else REQUIRED
    records = read_records(path, required, report, on_error)
    for place, record in tqdm(records, desc="reading", unit="row", delay=2, disable=None):
        report.read += 1
        if person and isinstance(record, dict) and record.get("user_id") is None:
            record = {**record, "user_id": person}
        try:
            row = parse_row(record, place)
        except UserError as error:
            if on_error == "raise":
                raise
            report.skipped.append(str(error))
            continue
        key = (row.user, row.prompt, row.chosen, row.rejected)
        first = rows.get(key)
        if first is not None:
            report.duplicates += 1
            differs = next((name for name in _ALLOWED if getattr(first, name) != getattr(row, name)), None)
            if differs:
                message = (
                    f"{place}: repeats {first.place}, but {differs!r} is {getattr(row, differs)!r} here and "
                    f"{getattr(first, differs)!r} there; remove one of the two"
                )
                if on_error == "raise":
                    raise UserError(message)
                report.skipped.append(message)
        else:
            rows[key] = row
    if not rows:
        detail = f" ({report.skipped[0]})" if report.skipped else ""
        raise UserError(f"{path}: no usable row{detail}; a row needs {', '.join(required)}")
    return list(rows.values()), report


def parse_row(record: Any, place: str) -> Row:
    """Parses one row from a dictionary; every error starts with `place` (file and row number)."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: not an object with named columns; write one JSON object per line")
    if None in record:  # the key that csv.DictReader gives to cells beyond the header
        raise UserError(f"{place}: more cells than columns; quote the texts that contain commas")
    for name in REQUIRED:
        if record.get(name) is None:
            raise UserError(f"{place}: column {name!r} is missing; needed are {', '.join(REQUIRED)}")
    for name in REQUIRED:
        if not isinstance(record[name], str | int | float):
            kind = type(record[name]).__name__
            raise UserError(f"{place}: column {name!r} must be a text, got a {kind}; write one text per cell")
    text = {name: str(record[name]) for name in REQUIRED}
    for name in ("user_id", "response_a", "response_b"):
        if not text[name].strip():
            raise UserError(f"{place}: column {name!r} is empty; remove the row or fill it in")
    if isinstance(record["choice"], bool) or text["choice"].strip() not in ("0", "1"):
        raise UserError(
            f"{place}: column 'choice' must be 0 (a) or 1 (b), got {record['choice']!r}; write 0 where "
            "response_a was chosen, 1 where response_b was"
        )
    if text["response_a"] == text["response_b"]:
        raise UserError(f"{place}: columns 'response_a' and 'response_b' are identical; remove the row")
    for name, value in text.items():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{place}: column {name!r} has half a character ({error.reason}); fix the text") from error
    optional = {name: str(record[name]) if record.get(name) is not None else "" for name in ("group", *_ALLOWED)}
    for name, allowed in _ALLOWED.items():
        if optional[name] and optional[name] not in allowed:
            raise UserError(f"{place}: column {name!r} must be {' or '.join(allowed)}, got {optional[name]!r}")
    a, b = text["response_a"], text["response_b"]
    chosen, rejected = (a, b) if text["choice"].strip() == "0" else (b, a)
    return Row(text["user_id"], text["prompt"], chosen, rejected, place=place, **optional)


def read_records(
    path: str, required: Sequence[str], report: RowReport | None = None, on_error: str = "raise"
) -> Iterator[tuple[str, Any]]:
    """(place, record) of every row of a file, directory or hub name; only the format is checked.

    Raises:
      UserError: the source cannot be read, or a table lacks a required column.
    """
    report = report or RowReport()
    file = Path(path)
    if file.is_dir():
        tables = sorted(str(f) for f in file.rglob("*") if f.name.endswith((".jsonl", ".jsonl.gz", ".parquet", ".csv")))
        if tables and not any((file / name).exists() for name in ("state.json", "dataset_dict.json")):
            for table in tables:  # for example a copy of a hub repository
                yield from read_records(table, required, report, on_error)
        else:
            yield from _dataset_records(path, from_disk=True)
    elif not file.exists():
        if file.suffix in (".jsonl", ".json", ".gz", ".csv", ".parquet") or not _looks_like_hub_name(path):
            raise UserError(f"{path}: no such file; give a .jsonl, .jsonl.gz, .csv or .parquet file")
        yield from _dataset_records(path, from_disk=False)
    elif path.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        yield from _jsonl_records(path, report, on_error)
    elif file.suffix == ".csv":
        yield from _csv_records(path, required)
    elif file.suffix == ".parquet":
        yield from _parquet_records(path, required)
    else:
        raise UserError(f"{path}: unknown kind of file; give .jsonl, .jsonl.gz, .csv or .parquet")


def _looks_like_hub_name(path: str) -> bool:
    return path.count("/") <= 1 and not path.startswith((".", "/", "~"))


def read_lines(path: str, keep_blank: bool = False) -> Iterator[tuple[str, str]]:
    """(place, line) of a UTF-8 text file, plain or gzipped; blank lines are skipped unless `keep_blank`."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file") from error
                if keep_blank or line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); is the file complete?") from error


def _jsonl_records(path: str, report: RowReport, on_error: str) -> Iterator[tuple[str, Any]]:
    for place, line in read_lines(path):
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{place}: not JSON ({error.msg} at column {error.colno}); write one object per line"
            if on_error == "raise":
                raise UserError(message) from error
            report.read += 1
            report.skipped.append(message)


def _csv_records(path: str, required: Sequence[str]) -> Iterator[tuple[str, Any]]:
    # A quoted text may hold blank lines.
    reader = csv.DictReader(line for _, line in read_lines(path, keep_blank=True))
    try:
        for name in required:
            if name not in (reader.fieldnames or ()):
                raise UserError(f"{path}:1: column {name!r} is missing; needed are {', '.join(required)}")
        for record in reader:
            yield f"{path}:{reader.line_num}", {k: v if v != "" or k in required else None for k, v in record.items()}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num + 1}: not CSV ({error})") from error


def _parquet_records(path: str, required: Sequence[str]) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        for name in required:
            if name not in table.schema_arrow.names:
                raise UserError(f"{path}: column {name!r} is missing; needed are {', '.join(required)}")
        number = 0
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from error


def _dataset_records(path: str, from_disk: bool) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(path) if from_disk else datasets.load_dataset(path)
    except Exception as error:  # the library raises many kinds, all of them about this path
        kind = "a `datasets` directory" if from_disk else "a dataset on the hub that can be reached"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not {kind} ({reason})") from error
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    for split, part in parts.items():
        for number, record in enumerate(part, 1):
            yield f"{path}{f'[{split}]' if split else ''}: row {number}", record
