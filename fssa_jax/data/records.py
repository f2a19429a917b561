"""Records of files: JSONL, JSON, CSV and Parquet, plain or gzipped, folders of them, and `datasets` sources."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import logging
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fssa_jax.errors import UserError
from fssa_jax.files import digest_file

_log = logging.getLogger(__name__)

COLUMNS = (
    *("user_id", "prompt", "response_a", "response_b", "choice", "responses", "ranking", "response", "rating"),
    *("completion", "label"),
    *("chosen", "rejected", "group", "split_user", "split_item", "pool", "situation", "unfinished"),
    *("instruction", "completions", "text"),
)
"""Columns that are read; others are ignored."""

_TEXTS = (".jsonl", ".json", ".csv", ".tsv")
_ENDINGS = (*_TEXTS, *(f"{ending}.gz" for ending in _TEXTS), ".parquet")
_LINE = 1 << 26  # bytes of a line
_ARRAY = 1 << 28  # bytes of a JSON array, which is read as a whole
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_SPLITS = {"train": "train", "training": "train", "test": "test", "val": "val", "valid": "val"} | dict.fromkeys(
    ("validation", "dev", "eval"), "val"
)


class Record(NamedTuple):
    """One record: file and row; its content; and the split that the source itself puts it in, or ""."""

    place: str
    values: Any
    split: str = ""


class BadRecord(NamedTuple):
    """A record that cannot be read: file and row, and why."""

    place: str
    reason: str


def read_records(path: str) -> Iterator[Record | BadRecord]:
    """The records of a file, folder, `datasets` directory or hub name; only the format is checked.

    `Record.split` is the source's own split, from file names or from `datasets`.

    Raises:
      UserError: the source cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        yield from _folder(file)
    elif file.exists():
        yield from _file(path)
    elif file.suffix in (*_TEXTS, ".gz", ".parquet") or path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UserError(f"{path}: no such file; give one of {', '.join(_ENDINGS)}")
    else:
        yield from _dataset(path, from_disk=False)


def source_digest(path: str, *others: Path) -> str:
    """The digest of a file, or of the files of a folder that are read; "" for a hub name, or what no longer exists.

    `others` are further files that belong to it.
    """
    source = Path(path)
    if not source.is_dir():
        files = [source] if source.is_file() else []
    elif _of_datasets(source):
        files = sorted(file for file in source.rglob("*") if file.is_file() and not file.name.startswith("."))
    else:
        files = _files_of(source)
    if not files:
        return ""
    parts = [f"{file.name} {digest_file(file):08x}" for file in (*files, *others)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16] if parts else ""


def read_lines(path: str, keep_blank: bool = False) -> Iterator[tuple[str, str]]:
    """(place, line) of a text file, plain or gzipped; blank lines are skipped unless `keep_blank`.

    The text is UTF-8, or UTF-16 if it starts with a byte order mark.

    Raises:
      UserError: it is no regular file, cannot be read, or has a line of more than 64 MiB.
    """
    _check_regular(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as stream:
            mark = stream.peek(2)[:2] if hasattr(stream, "peek") else b""
            encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
            lines = (
                _utf16_lines(stream, path) if encoding == "utf-16" else iter(lambda: stream.readline(_LINE + 1), b"")
            )
            for number, raw in enumerate(lines, 1):
                if len(raw) > _LINE:
                    raise UserError(f"{path}:{number}: a line of more than {_LINE >> 20} MiB; write one row per line")
                line = raw if isinstance(raw, str) else raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if keep_blank or line.strip():
                    yield f"{path}:{number}", line
    except UnicodeDecodeError as error:
        where = f"{path}:{number}" if encoding == "utf-8" else path
        raise UserError(f"{where}: not UTF-{encoding[4:]} ({error.reason}); convert the file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); is the file complete?") from error


def _check_regular(path: str) -> None:
    """Raises `UserError` for a pipe or a device, which may never end, and for a file that is missing."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a regular file; copy its content to one")


def _utf16_lines(stream: Any, path: str) -> Iterator[str]:
    content = stream.read(_ARRAY + 1)
    if len(content) > _ARRAY:
        raise UserError(f"{path}: more than {_ARRAY >> 20} MiB of UTF-16; convert it to UTF-8")
    yield from io.StringIO(content.decode("utf-16"), newline="\n")


def _file(path: str, split: str = "") -> Iterator[Record | BadRecord]:
    plain = path.removesuffix(".gz")
    if plain.endswith(".jsonl"):
        records: Iterable[Record | BadRecord] = _jsonl(path)
    elif plain.endswith(".json"):
        records = _json(path)
    elif plain.endswith((".csv", ".tsv")):
        records = _csv(path)
    elif path.endswith(".parquet"):
        records = _parquet(path)
    else:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(_ENDINGS)}")
    for record in records:
        yield record._replace(split=split) if split and isinstance(record, Record) else record


def _folder(folder: Path) -> Iterator[Record | BadRecord]:
    """The files of a folder in the order of their names, such as a copy of a hub repository."""
    if _of_datasets(folder):
        yield from _dataset(str(folder), from_disk=True)
        return
    files = _files_of(folder)
    if not files:
        raise UserError(f"{folder}: holds no rows; give a folder with {', '.join(_ENDINGS)}, or of `datasets`")
    splits = [_split_of(file.relative_to(folder).parts) for file in files]
    divided = len(set(splits) - {""}) > 1
    for file, split in zip(files, splits, strict=True):
        yield from _file(str(file), split if divided else "")


def _of_datasets(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))


def _files_of(folder: Path) -> list[Path]:
    """The files of rows in a folder, in the order of their names."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.name.endswith(_ENDINGS)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)  # hidden copies
        and not re.search(r"\.texts\.jsonl(\.gz)?$", file.name)  # belongs to vectors
        and not (file.suffix == ".json" and file.name in ("dataset_info.json", "dataset_infos.json"))
    ]


def _split_of(names: Iterable[str]) -> str:
    """The split that a file belongs to by its name or its folder's; "" if they name none."""
    for name in names:
        word = re.match(r"[A-Za-z]+", name)
        if word and word[0].lower() in _SPLITS:
            return _SPLITS[word[0].lower()]
    return ""


def _parsed(text: str) -> Any:
    """The content of a JSON text.

    Raises:
      ValueError: with a reason in one line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read (nested too deeply)") from error
    except ValueError as error:
        raise ValueError(f"not JSON that can be read ({str(error).split(';')[0]})") from error


def _jsonl(path: str) -> Iterator[Record | BadRecord]:
    for place, line in read_lines(path):
        try:
            yield Record(place, _parsed(line))
        except ValueError as error:
            yield BadRecord(place, f"{error}; write one object per line")


def _json(path: str) -> Iterator[Record | BadRecord]:
    """A JSON array of records, or one object per line."""
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if not first[1].lstrip().startswith("["):
        for place, line in itertools.chain([first], lines):
            try:
                yield Record(place, _parsed(line))
            except ValueError as error:
                yield BadRecord(place, f"{error}; write one object per line, or a list of objects")
        return
    parts, size = [first[1]], len(first[1])
    for _, line in lines:
        parts.append(line)
        size += len(line)
        if size > _ARRAY:
            raise UserError(f"{path}: a list of more than {_ARRAY >> 20} MiB; write one object per line (.jsonl)")
    try:
        content = _parsed("".join(parts))
    except ValueError as error:
        raise UserError(f"{path}: {error}; write a list of objects, or one object per line (.jsonl)") from error
    for number, values in enumerate(content if isinstance(content, list) else [content], 1):
        yield Record(f"{path}: row {number}", values)


@cache
def _say_separator(path: str, separator: str) -> None:
    """Logs it once: a source is opened again after its schema is known."""
    _log.info("%s: cells are separated by %s", path, separator)


def _csv(path: str) -> Iterator[Record | BadRecord]:
    csv.field_size_limit(_LINE)
    # A quoted text may hold blank lines.
    lines = (line for _, line in read_lines(path, keep_blank=True))
    first = next(lines, "")
    separator = max(
        _SEPARATORS, key=lambda s: (sum(name.strip(' "\r\n') in COLUMNS for name in first.split(s)), s == ",")
    )
    if separator != "," and not path.removesuffix(".gz").endswith(".tsv"):
        _say_separator(path, _SEPARATORS[separator])
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator)
    try:
        names = [name.strip() for name in next(reader, [])]
        twice = next((name for name in names if name in COLUMNS and names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}:1: two columns are called {twice!r}; rename one")
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) > len(names):
                yield BadRecord(place, "more cells than columns; quote the texts that contain commas")
                continue
            values: dict[str, Any] = dict(zip(names, cells, strict=False))
            yield Record(
                place, {name: None if cell == "" and name != "prompt" else cell for name, cell in values.items()}
            )
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num + 1}: not CSV ({error})") from error


def _parquet(path: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    _check_regular(path)
    try:
        table = pyarrow.parquet.ParquetFile(path)
        known = [name for name in table.schema_arrow.names if name in COLUMNS]
        if not known:
            raise UserError(f"{path}: none of its columns is known; known are {', '.join(COLUMNS)}")
        number = 0
        for batch in table.iter_batches(columns=known):
            for values in batch.to_pylist():
                number += 1
                yield Record(f"{path}: row {number}", values)
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({_line(error)})") from error


def _dataset(path: str, from_disk: bool) -> Iterator[Record]:
    import datasets

    kind = "a `datasets` directory" if from_disk else "a dataset on the hub that can be reached"
    try:
        loaded = datasets.load_from_disk(path) if from_disk else datasets.load_dataset(path)
    except Exception as error:  # the library raises many kinds, all of them about this path
        raise UserError(f"{path}: not {kind} ({_line(error)})") from error
    parts = loaded if isinstance(loaded, dict) else {"": loaded}
    splits = {name: _split_of([str(name)]) for name in parts}
    divided = len(set(splits.values()) - {""}) > 1
    for name, part in parts.items():
        known = [column for column in part.column_names or () if column in COLUMNS]
        place = f"{path}[{name}]" if name else path
        try:
            for number, values in enumerate(part.select_columns(known) if known else (), 1):
                yield Record(f"{place}: row {number}", values, splits[name] if divided else "")
        except Exception as error:  # damaged files surface as many kinds
            raise UserError(f"{place}: cannot be read ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
