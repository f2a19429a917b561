"""A data set in words: what it holds, what was left out, and what to expect."""

import numpy as np

from fssa_jax.config import Rows
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.data.summary import data_warnings, summary
from tests import tiny


def made(tmp_path, records, **settings):
    path = tiny.write_rows(tmp_path / "rows.jsonl", records)
    return rows_dataset(Rows(path=str(path), components=3, features="tfidf", **settings))


def test_the_summary_counts_people_choices_and_texts(tmp_path):
    records = tiny.rows(users=10, number=8)
    lines = summary(made(tmp_path, [*records, records[0]]))
    assert lines[0] == "people: 8 train, 1 val, 1 test"
    assert lines[1].startswith("context choices per person: ")
    assert "texts: " in lines[3]
    assert "0% of them judged by more than one person" in lines[3]
    assert "rows left out: 1 duplicates (1.2%)" in lines[4]
    assert lines[-1].startswith("k that can be evaluated: up to ")


def test_the_summary_says_how_many_choices_people_made_and_what_can_be_evaluated(tmp_path):
    """Person u has u + 1 context choices; the last three are for testing."""
    records = []
    for i, row in enumerate(tiny.rows(users=9, number=10)):
        u, place = divmod(i, 10)
        if place < u + 2:
            split = "train" if u < 5 else "val" if u == 5 else "test"
            records.append(row | {"pool": "target" if place == 0 else "context", "split_user": split})
    lines = summary(made(tmp_path, records))
    assert lines[1:3] == [
        "context choices per person: 1 / 5 / 9 (min / median / max)",
        "target choices per person: 1 / 1 / 1 (min / median / max)",
    ]
    assert lines[-1] == "k that can be evaluated: up to 7 for every test person, up to 8 for half"


def test_texts_that_many_judge_and_lists_are_said(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {
            "user_id": f"u{u}",
            "responses": [f"word{t % 4} other{t // 4}" for t in rng.permutation(8)[:3]],
            "choice": 1,
            "situation": str(i),
        }
        for u in range(9)
        for i in range(8)
    ]
    lines = summary(made(tmp_path, records))
    assert "choices are of one among up to 3 responses" in lines
    assert any("100% of them judged by more than one person" in line for line in lines)


def test_few_people_and_few_choices_are_warned_of(tmp_path):
    dataset = made(tmp_path, tiny.rows(users=10, number=4))
    warned = data_warnings(dataset)
    assert [line.split(":")[0] for line in warned] == [
        "only 8 people to train on",
        "only 1 people to validate or test on",
        "half of the people have fewer than 3 context choices",
    ]
    assert data_warnings(made(tmp_path, tiny.rows(users=250, number=8))) == []


def test_rows_that_are_lost_by_repeated_texts_are_warned_of(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        {"user_id": f"u{u}", "response_a": f"word{a} x", "response_b": f"word{b} y", "choice": 0}
        for u in range(60)
        for a, b in rng.integers(0, 6, (12, 2))
    ]
    [line] = [line for line in data_warnings(made(tmp_path, records)) if "situation" in line]
    assert "rows are left out because context and targets would share a text" in line
    named = [row | {"situation": str(i)} for i, row in enumerate(records)]
    dataset = made(tmp_path, named)
    assert not any("situation" in line for line in data_warnings(dataset))
    assert dataset.report["left_out_rows"].get("texts in both pools", 0) == 0
