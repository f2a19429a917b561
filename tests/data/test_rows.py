"""Reading preference rows: every format gives the same rows, every mistake one clear line."""

import csv
import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fssa_jax.data.reading import read_rows
from fssa_jax.data.records import Record
from fssa_jax.data.rows import Row, parse_row
from fssa_jax.data.schemas import crowd_rows
from tests import tiny
from tests.mistakes import complaint

GOOD = {"user_id": "ann", "prompt": "p", "response_a": "yes", "response_b": "no", "choice": 0}
# Blank lines, commas and quotes inside a text must survive every format.
ROWS = [
    GOOD | {"group": "g", "split_user": "train", "split_item": "test", "pool": "context"},
    GOOD
    | {"response_a": 'one\n\ntwo, "three" 😊', "choice": 1, "group": "", "split_user": "", "split_item": "val"}
    | {"pool": "target"},
    GOOD | {"user_id": "7", "prompt": "", "group": "", "split_user": "", "split_item": "", "pool": ""},
]
REQUIRED = ("user_id", "prompt", "response_a", "response_b", "choice")
BAD = {
    "missing": ({key: GOOD[key] for key in REQUIRED if key != "response_b"}, "response_b"),
    "null": (GOOD | {"response_b": None}, "response_b"),
    "choice 2": (GOOD | {"choice": 2}, "choice"),
    "choice word": (GOOD | {"choice": "first"}, "choice"),
    "choice half": (GOOD | {"choice": 0.25}, "choice"),
    "a list": (GOOD | {"response_a": ["yes"]}, "response_a"),
    "half a character elsewhere": (GOOD | {"group": "\ud83d"}, "group"),
    "a number without digits": (GOOD | {"user_id": 2.0**60}, "user_id"),
    "empty response": (GOOD | {"response_a": " \n"}, "response_a"),
    "empty user": (GOOD | {"user_id": ""}, "user_id"),
    "identical": (GOOD | {"response_b": "yes"}, "response_b"),
    "split_user": (GOOD | {"split_user": "dev"}, "split_user"),
    "split_item": (GOOD | {"split_item": "trian"}, "split_item"),
    "pool": (GOOD | {"pool": "both"}, "pool"),
    "half a character": (GOOD | {"response_a": "\ud83d"}, "response_a"),
    "half a character of a pair": ({"user_id": "ann", "chosen": "\ud83d", "rejected": "no", "prompt": "p"}, "chosen"),
    "half a character of a message": (
        {"user_id": "ann", "chosen": "yes", "rejected": "no", "prompt": [{"role": "user", "content": "\ud83d"}]},
        "prompt",
    ),
    "repeated with another pool": (GOOD | {"pool": "target"}, "pool"),
}


def write(path, rows):
    """Writes the rows in the format that the name says; a name without an ending is a `datasets` directory."""
    kind = path.name.partition(".")[2]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    rows, report = read_rows(write(tmp_path / name, ROWS))
    assert [(r.user, r.prompt, r.chosen, r.rejected) for r in rows] == [
        ("ann", "p", "yes", "no"),
        ("ann", "p", "no", 'one\n\ntwo, "three" 😊'),
        ("7", "", "yes", "no"),
    ]
    assert [(r.group, r.split_user, r.split_item, r.pool) for r in rows] == [
        ("g", "train", "test", "context"),
        ("", "", "val", "target"),
        ("", "", "", ""),
    ]
    assert (report.read, report.duplicates, report.skipped) == (3, 0, [])


def test_all_splits_of_a_datasets_directory_are_read(tmp_path):
    parts = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "rows")
    rows, _ = read_rows(str(tmp_path / "rows"))
    assert [row.place.removeprefix(str(tmp_path)) for row in rows] == [
        "/rows[train]: row 1",
        "/rows[test]: row 1",
        "/rows[test]: row 2",
    ]


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\ufeff" + json.dumps(GOOD) + "\n\n  \n" + json.dumps(GOOD | {"user_id": "bob"}) + "\n")
    rows, report = read_rows(str(path))
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:4"]
    assert report.read == 2


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_by_file_row_and_column(tmp_path, kind):
    row, column = BAD[kind]
    path = write(tmp_path / "rows.jsonl", [GOOD, row, GOOD | {"user_id": "bob"}])
    message = complaint(read_rows, path)
    assert message.startswith(f"{path}:2: ")
    assert f"'{column}'" in message
    rows, report = read_rows(path, on_error="skip")
    assert [r.user for r in rows] == ["ann", "bob"]
    assert report.read == 3
    assert report.skipped == [message]


@pytest.mark.parametrize(
    ("name", "place"), [("rows.csv", ":3: "), ("rows.parquet", ": row 2: "), ("rows", ": row 2: ")]
)
def test_a_bad_row_of_other_formats_is_named_too(tmp_path, name, place):
    path = write(tmp_path / name, [GOOD, GOOD | {"choice": 5}])
    message = complaint(read_rows, path)
    assert message.startswith(path + place)
    assert "'choice'" in message
    assert read_rows(path, "skip")[1].skipped == [message]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_missing_column_of_a_table_is_named(tmp_path, name):
    path = write(tmp_path / name, [BAD["missing"][0]])
    message = complaint(read_rows, path)
    assert message.startswith(path)
    assert "'response_b'" in message


@pytest.mark.parametrize(("line", "word"), [("{not json", "JSON"), ("[1, 2]", "object"), ('"text"', "object")])
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path, line, word):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    message = complaint(read_rows, str(path))
    assert message.startswith(f"{path}:2: ")
    assert word in message
    rows, report = read_rows(str(path), "skip")
    assert (len(rows), report.read, report.skipped) == (1, 2, [message])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_wrong_encoding_is_named_by_its_line(tmp_path, name, on_error):
    path = tmp_path / name
    write(path, [GOOD])
    content = path.read_bytes()
    path.write_bytes(content + content.splitlines()[-1].replace(b"yes", "größe".encode("latin-1")) + b"\n")
    message = complaint(read_rows, str(path), on_error)
    assert message.startswith(f"{path}:{len(content.splitlines()) + 1}: ")
    assert "UTF-8" in message


def test_a_truncated_gzip_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    write(path, [GOOD | {"user_id": str(i * 7919)} for i in range(200)])
    path.write_bytes(path.read_bytes()[:-30])
    assert complaint(read_rows, str(path), "skip").startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", b"plain text"),
        ("rows.parquet", b"no parquet"),
        ("rows.xlsx", b"PK"),
        ("rows.jsonl", b""),
        ("rows.csv", b""),
        ("rows.csv", b"\xff\xfeu\x00s\x00"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert complaint(read_rows, str(path)).startswith(str(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows"])
def test_a_missing_file_is_named(tmp_path, name):
    path = str(tmp_path / name)
    assert complaint(read_rows, path).startswith(f"{path}: no such file")


def test_a_directory_of_files_is_read_in_their_order(tmp_path):
    """As a copy of a repository of the hub is."""
    records = tiny.rows(users=4)
    (tmp_path / "copy" / "data").mkdir(parents=True)
    tiny.write_rows(tmp_path / "copy" / "data" / "b.jsonl", records[20:])
    tiny.write_rows(tmp_path / "copy" / "data" / "a.jsonl", records[:20])
    (tmp_path / "copy" / "README.md").write_text("a data set")
    rows, _ = read_rows(str(tmp_path / "copy"))
    assert rows[0].place == f"{tmp_path}/copy/data/a.jsonl:1"
    assert [row.user for row in rows] == [record["user_id"] for record in records]


def test_a_directory_that_datasets_did_not_write_is_named(tmp_path):
    assert complaint(read_rows, str(tmp_path)).startswith(f"{tmp_path}: holds no rows; ")


def test_a_hub_name_that_cannot_be_loaded_is_one_line(monkeypatch):
    def unreachable(path):
        raise ConnectionError(f"cannot reach {path}\nmany\nlines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert complaint(read_rows, "someone/choices").startswith("someone/choices: not a dataset on the hub")


def test_a_csv_row_with_a_cell_too_many_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(",".join(REQUIRED) + "\nann,p,yes,no,0\nann,p,yes,no,1,no\n")
    assert complaint(read_rows, str(path)).startswith(f"{path}:3: ")
    assert len(read_rows(str(path), "skip")[1].skipped) == 1


def test_a_csv_cell_may_be_long(tmp_path):
    path = write(tmp_path / "rows.csv", [GOOD, GOOD | {"response_a": "x" * 200_000}])
    assert len(read_rows(path)[0][1].chosen) == 200_000


def test_a_csv_line_after_a_text_of_many_lines_keeps_its_number(tmp_path):
    path = write(tmp_path / "rows.csv", [GOOD | {"prompt": "a\n\nb"}, GOOD | {"choice": 9}])
    assert complaint(read_rows, path).startswith(f"{path}:5: ")


def test_duplicates_are_kept_once_and_counted(tmp_path):
    swapped = GOOD | {"response_a": "no", "response_b": "yes", "choice": 1}
    opposite = GOOD | {"choice": 1}
    rows, report = read_rows(write(tmp_path / "rows.jsonl", [GOOD, swapped, GOOD, opposite]))
    assert [(row.chosen, row.rejected) for row in rows] == [("yes", "no"), ("no", "yes")]
    assert (report.read, report.duplicates) == (4, 2)


def test_no_usable_row_is_an_error_that_says_why(tmp_path):
    path = write(tmp_path / "rows.jsonl", [GOOD | {"choice": 3}])
    message = complaint(read_rows, path, "skip")
    assert message.startswith(f"{path}: no usable row")
    assert "'choice'" in message


@pytest.mark.parametrize("choice", [0, "0", " 0 ", 0.0, "0.0", "a", "A", False, "false"])
def test_the_choice_says_which_response_was_chosen(choice):
    assert parse_row(GOOD | {"choice": choice}, "here") == Row("ann", "p", "yes", "no", place="here")
    assert parse_row(GOOD | {"choice": 1}, "here") == Row("ann", "p", "no", "yes", place="here")


UNFINISHED = {
    "choices": (GOOD | {"choice": 1, "unfinished": [False, True]}, {"no"}),
    "words of a table": (GOOD | {"unfinished": "[True, false]"}, {"yes"}),
    "pairs": ({"user_id": "ann", "prompt": "p", "chosen": "x", "rejected": "y", "unfinished": [1, 0]}, {"x"}),
    "one of n": ({"user_id": "a", "responses": ["x", "y", "z"], "choice": 2, "unfinished": [0, 1, 1.0]}, {"y", "z"}),
    "thumbs": ({"user_id": "a", "response": "x", "label": False, "unfinished": True}, {"x"}),
    "one of a list": ({"user_id": "a", "response": "x", "label": True, "unfinished": ["true"]}, {"x"}),
    "missing": (GOOD | {"unfinished": None}, set()),
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_a_row_says_which_responses_were_cut_off(tmp_path, kind):
    values, expected = UNFINISHED[kind]
    [row] = read_rows(write(tmp_path / "rows.jsonl", [values]))[0]
    assert row.unfinished == expected


def test_every_choice_of_a_ranking_and_of_ratings_knows_which_were_cut_off(tmp_path):
    ranking = {"user_id": "a", "ranking": ["x", "y", "z"], "unfinished": [True, False, False]}
    first, second = read_rows(write(tmp_path / "ranking.jsonl", [ranking]))[0]
    assert (first.unfinished, second.unfinished) == ({"x"}, set())
    rated = [{"user_id": "a", "response": r, "rating": n, "unfinished": r == "y"} for n, r in enumerate("xyz")]
    pairs = read_rows(write(tmp_path / "rated.jsonl", rated))[0]
    assert pairs
    assert all(row.unfinished == {"y"} & {row.chosen, row.rejected} for row in pairs)
    levels = read_rows(write(tmp_path / "rated.jsonl", rated), ratings="levels")[0]
    assert {response for row in levels for response in row.unfinished} == {"y"}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, "a list of 2 values"), ([True], "a list of 2 values"), ([0, 2], "a list"), ("[0", "a list")],
)
def test_what_does_not_say_which_response_was_cut_off_is_a_bad_row(value, wanted):
    message = complaint(parse_row, GOOD | {"unfinished": value}, "here")
    assert message.startswith(f"here: column 'unfinished' must be {wanted}")


def test_repeated_rows_and_rows_without_people_say_it_too(tmp_path):
    twice = [GOOD, GOOD | {"unfinished": [True, False]}]
    rows, report = read_rows(write(tmp_path / "twice.jsonl", twice))
    assert (len(rows), report.duplicates, rows[0].unfinished) == (1, 1, {"yes"})
    records = [
        Record(f"here:{i}", {"prompt": f"p{i}", "chosen": "x", "rejected": f"y{i}", "unfinished": [False, True]})
        for i in range(200)
    ]
    crowd, _ = crowd_rows(records)
    assert crowd
    assert all(row.unfinished == {row.rejected} for row in crowd)
    bad = [Record("here:1", {"prompt": "p", "chosen": "x", "rejected": "y", "unfinished": True})]
    assert "column 'unfinished' must be a list of 2 values" in complaint(crowd_rows, bad)
