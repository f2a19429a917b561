"""Files of many formats hold the same records; what is no file of rows is refused, with bounded memory."""

import contextlib
import gzip
import json
import os
import tracemalloc

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from fssa_jax.data import records
from fssa_jax.data.reading import read_rows
from fssa_jax.data.records import BadRecord, Record, read_records
from fssa_jax.errors import UserError
from tests.mistakes import complaint

ROW = {"user_id": "ann", "prompt": "p", "response_a": "größe", "response_b": "no", "choice": 0}
HEAD, CELLS = "user_id,prompt,response_a,response_b,choice\n", "ann,p,größe,no,0\n"
FILES = {
    "rows.json": json.dumps([ROW], indent=1),
    "lines.json": json.dumps(ROW),
    "rows.json.gz": gzip.compress(json.dumps([ROW]).encode()),
    "rows.csv.gz": gzip.compress((HEAD + CELLS).encode()),
    "rows.tsv": (HEAD + CELLS).replace(",", "\t"),
    "semicolons.csv": (HEAD + CELLS).replace(",", ";"),
    "spaces.csv": " user_id , prompt,response_a ,response_b, choice \n" + CELLS,
    "utf16.csv": (HEAD + CELLS).encode("utf-16"),
    "utf16.jsonl": (json.dumps(ROW, ensure_ascii=False) + "\n").encode("utf-16"),
    "no prompt.csv": "user_id,response_a,response_b,choice\nann,größe,no,0\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_holds_the_same_row(tmp_path, name):
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows, _ = read_rows(str(tmp_path / name))
    assert [(r.user, r.chosen, r.rejected) for r in rows] == [("ann", "größe", "no")]


def test_the_separator_is_named(tmp_path, caplog):
    path = tmp_path / "rows.csv"
    path.write_text(FILES["semicolons.csv"])
    with caplog.at_level("INFO"):
        read_rows(str(path))
    assert f"{path}: cells are separated by semicolons" in caplog.text


def test_missing_texts_and_whole_numbers_of_pandas_are_what_they_were(tmp_path):
    """NaN is no person called nan, and 7.0 is person 7."""
    frame = pandas.DataFrame([ROW | {"user_id": 7, "group": None}, ROW | {"user_id": None, "group": "g"}])
    frame.to_parquet(tmp_path / "rows.parquet")
    message = complaint(read_rows, str(tmp_path / "rows.parquet"))
    assert "row 2: column 'user_id' is missing" in message
    rows, _ = read_rows(str(tmp_path / "rows.parquet"), "skip")
    assert [(row.user, row.group) for row in rows] == [("7", "")]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(ROW | {"user_id": u}) + "\n" for u in (7, 7.0, "7")))
    rows, report = read_rows(str(tmp_path / "mixed.jsonl"))
    assert ([row.user for row in rows], report.duplicates) == (["7"], 2)
    (tmp_path / "nan.jsonl").write_text(json.dumps(ROW | {"response_a": float("nan")}) + "\n")
    assert "'response_a' is missing" in complaint(read_rows, str(tmp_path / "nan.jsonl"))


def test_a_folder_keeps_its_division_and_leaves_out_what_is_no_rows(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}-00000.jsonl").write_text(json.dumps(ROW | {"user_id": name}) + "\n")
    (tmp_path / ".train-00000.jsonl").write_text("half a copy")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jsonl").write_text("half a copy")
    (tmp_path / "train-00000.texts.jsonl").write_text('["p", "größe"]\n')
    (tmp_path / "dataset_info.json").write_text("{}")
    rows, _ = read_rows(str(tmp_path))
    assert [(row.user, row.split) for row in rows] == [("test", "test"), ("train", "train"), ("validation", "val")]


def test_a_folder_without_a_division_has_none(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    assert [row.split for row in read_rows(str(tmp_path))[0]] == [""]


def test_the_splits_of_datasets_are_kept(tmp_path):
    parts = {n: datasets.Dataset.from_list([ROW | {"user_id": n}]) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert [(row.user, row.split) for row in read_rows(str(tmp_path / "d"))[0]] == [
        ("train", "train"),
        ("test", "test"),
    ]


LINES = {
    "deep": "[" * 3000,
    "many digits": json.dumps(ROW)[:-1] + ', "item_id": ' + "9" * 5000 + "}",
    "half": json.dumps(ROW)[:-5],
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_cannot_be_parsed_is_a_bad_row(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{LINES[name]}\n")
    found = list(read_records(str(path)))
    assert isinstance(found[0], Record)
    assert isinstance(found[1], BadRecord)
    assert complaint(read_rows, str(path)).startswith(f"{path}:2: not JSON")
    assert len(read_rows(str(path), "skip")[1].skipped) == 1
    (tmp_path / "rows.json").write_text(f"[{json.dumps(ROW)},\n{LINES[name]}]\n")
    assert complaint(read_rows, str(tmp_path / "rows.json")).startswith(f"{tmp_path / 'rows.json'}: not JSON")


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "rows.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    else:
        path.symlink_to("/dev/zero")
    if kind == "device":
        assert "unknown kind of file" in complaint(read_rows, str(path))
    else:
        assert complaint(read_rows, str(path)).startswith(f"{path}: not a regular file")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.json.gz"])
def test_an_endless_line_is_refused_with_bounded_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(records, "_LINE", 1 << 20)
    monkeypatch.setattr(records, "_ARRAY", 1 << 20)
    path = tmp_path / name
    with gzip.open(path, "wb", 1) as stream:
        stream.write(b'["' if ".json" in name else b"user_id,")
        for _ in range(64):
            stream.write(b"x" * (1 << 20))
    tracemalloc.start()
    message = complaint(read_rows, str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith(f"{path}:1: a line of more than 1 MiB")
    assert peak < 16 << 20


def test_a_long_list_is_refused_with_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_ARRAY", 1000)
    path = tmp_path / "rows.json"
    path.write_text("[\n" + ",\n".join([json.dumps(ROW)] * 100) + "\n]")
    assert complaint(read_rows, str(path)).startswith(f"{path}: a list of more than")


def test_a_long_file_of_utf_16_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_ARRAY", 1000)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(((json.dumps(ROW) + "\n") * 20).encode("utf-16"))
    assert complaint(read_rows, str(path)).startswith(f"{path}: more than")


def write_parquet(path, **columns):
    table = {name: [value, value] for name, value in ROW.items()} | columns
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def test_damaged_parquet_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(np.array([0, 1, 2], np.int32)), pyarrow.py_buffer(b"\xff\xfe")]
    )
    write_parquet(path, prompt=bad)
    assert complaint(read_rows, str(path)).startswith(f"{path}: not a readable Parquet file")
    far = pyarrow.array([2**62, 2**62], pyarrow.timestamp("us"))
    write_parquet(path, group=far)
    assert complaint(read_rows, str(path)).startswith(f"{path}: ")
    write_parquet(path, made=far)  # a column that is not read
    assert len(read_rows(str(path))[0]) == 1
    content = path.read_bytes()
    for place in range(4, len(content) - 8, 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with contextlib.suppress(UserError):  # and nothing else
            read_rows(str(path), "skip")


def test_columns_of_the_same_name_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("user_id,user_id,response_a,response_b,choice\na,b,x,y,0\n")
    assert "two columns are called 'user_id'" in complaint(read_rows, str(tmp_path / "rows.csv"))


def test_other_line_separators_are_part_of_a_text(tmp_path):
    row = ROW | {"response_a": "one\u2028two\x85three\x0bfour"}
    for name, encoding in (("a.jsonl", "utf-16"), ("b.jsonl", "utf-8")):
        (tmp_path / name).write_bytes((json.dumps(row, ensure_ascii=False) + "\n").encode(encoding))
        assert read_rows(str(tmp_path / name))[0][0].chosen == row["response_a"]


def test_the_digest_is_of_what_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    before = records.source_digest(str(tmp_path))
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "notes.md").write_text("x")
    assert records.source_digest(str(tmp_path)) == before
    (tmp_path / "more.jsonl").write_text(json.dumps(ROW) + "\n")
    assert records.source_digest(str(tmp_path)) != before
    assert records.source_digest("someone/choices") == ""
