"""UltraFeedback's ratings and whole conversations become rows: by prompt, without ambiguity, everything counted."""

import json

import pytest

from fssa_jax.config import Rows, UltraFeedback
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset, only_groups
from fssa_jax.data.records import Record
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.data.rows import RowReport
from fssa_jax.data.schemas import crowd_rows, ultrafeedback_rows
from fssa_jax.lm.messages import messages_of
from tests import tiny
from tests.mistakes import complaint

LABELS = ("helpfulness", "honesty")


def record(i: int, ratings: list[tuple]) -> dict:
    """UltraFeedback's schema: a prompt and completions with a rating for each aspect."""
    return {
        "source": "test",
        "instruction": f"question {i} about topic{i % 7}",
        "models": [],
        "completions": [
            {
                "model": "m",
                "response": f"answer {i} {j} word{(i + j) % 9} " + "long " * (j + 1),
                "annotations": {name: {"Rating": str(r), "Rationale": ""} for name, r in zip(LABELS, row, strict=True)},
            }
            for j, row in enumerate(ratings)
        ],
    }


def records(number: int) -> list[dict]:
    """The longer the more helpful and the less honest; the last answer is best in both."""
    return [record(i, [(1, 4), (2, 3), (3, 2), (5, 5)]) for i in range(number)]


def places(items):
    return [Record(f"r:{i}", item) for i, item in enumerate(items)]


def test_all_pairs_of_a_prompt_are_chosen_by_rating():
    rows, report = ultrafeedback_rows(places([record(0, [(1, 4), (2, 3), (5, 5)])]), LABELS, conflicting=0.5)
    assert (report.prompts, report.pairs, report.agreed) == (1, 2, 1)  # one at odds, as many agreed: one of two
    at_odds = [row for row in rows if {row.chosen[:10], row.rejected[:10]} == {"answer 0 0", "answer 0 1"}]
    assert {row.group: row.chosen[:10] for row in at_odds} == {"helpfulness": "answer 0 1", "honesty": "answer 0 0"}


def test_ambiguous_and_unrated_completions_are_left_out_and_counted():
    odd = record(0, [(1, 4), (1, 3), ("N/A", 2), (4, 1)])
    del odd["completions"][3]["annotations"]["honesty"]
    rows, report = ultrafeedback_rows(places([odd, *records(1)]), LABELS)
    assert (report.unrated, report.ambiguous) == (2, 1)
    assert report.pairs == 3
    assert len(rows) == 6


def test_users_are_of_one_label_and_prompts_of_one_split_and_one_pool():
    rows, report = ultrafeedback_rows(places(records(400)), LABELS)
    assert report.pairs == 1200
    split_of: dict[str, set] = {}
    pool_of: dict[tuple, set] = {}
    for row in rows:
        split_of.setdefault(row.prompt, set()).add(row.split_user)
        pool_of.setdefault((row.user, row.prompt), set()).add(row.pool)
        assert row.user.startswith(f"{row.group}-{row.split_user}-")
    assert all(len(s) == 1 for s in split_of.values())
    assert all(len(p) == 1 for p in pool_of.values())
    counts = {s: sum(x == {s} for x in split_of.values()) for s in ("train", "val", "test")}
    assert counts["train"] > 280
    assert min(counts["val"], counts["test"]) > 20
    assert {row.user.replace("helpfulness", "*") for row in rows if row.group == "helpfulness"} == {
        row.user.replace("honesty", "*") for row in rows if row.group == "honesty"
    }


def transcripts(number: int) -> list[dict]:
    """The prompts of `records`, as pairs of conversations."""
    asked = [f"\n\nHuman: question {i} about topic{i % 7}\n\nAssistant:" for i in range(number)]
    return [{"chosen": f"{prompt} bake it", "rejected": f"{prompt} buy it"} for prompt in asked]


@pytest.mark.parametrize(
    ("items", "read"), [(records, lambda items: ultrafeedback_rows(items, LABELS)), (transcripts, crowd_rows)]
)
def test_prompts_that_the_source_holds_out_are_held_out(items, read):
    """Also where they are in its training as well; those for validation, which it lacks, are taken from the others."""
    parts = [part._replace(split="train" if i % 4 else "test") for i, part in enumerate(places(items(80)))]
    rows, _ = read([*parts, parts[0]._replace(split="train"), parts[1]._replace(split="test")])
    held_out = {f"question {i} about topic{i % 7}" for i in (1, *range(0, 80, 4))}
    assert {row.prompt for row in rows if row.split_user == "test"} == held_out
    assert {row.split_user for row in rows if row.prompt not in held_out} == {"train", "val"}


def test_ratings_are_not_cut_to_whole_numbers():
    rows, report = ultrafeedback_rows(places([record(0, [("4.9", "1.5"), ("4.1", "2.5")])]), LABELS)
    assert (report.pairs, report.unrated, report.ambiguous) == (1, 0, 0)
    assert {row.group: row.chosen[:10] for row in rows} == {"helpfulness": "answer 0 0", "honesty": "answer 0 1"}


@pytest.mark.parametrize("rating", ["inf", "-inf", "nan"])
def test_a_rating_that_is_not_finite_is_none(rating):
    _, report = ultrafeedback_rows(places([record(0, [(rating, 4), (2, 3), (3, 2)])]), LABELS)
    assert (report.pairs, report.unrated) == (1, 1)


def test_the_conflicting_share_is_kept():
    _, half = ultrafeedback_rows(places(records(100)), LABELS, conflicting=0.5)
    assert (half.pairs, half.agreed) == (600, 0)
    _, most = ultrafeedback_rows(places(records(100)), LABELS, conflicting=0.75)
    assert (most.pairs, most.agreed) == (400, 200)


def test_what_cannot_be_used_is_one_line():
    assert "config.data.labels" in complaint(ultrafeedback_rows, places(records(1)), ("kindness",))
    assert "config.data.conflicting" in complaint(ultrafeedback_rows, places(records(1)), LABELS, 0.0)
    assert complaint(ultrafeedback_rows, [Record("f:3", {"instruction": "x"})], LABELS).startswith("f:3: needs")
    assert "no pair" in complaint(ultrafeedback_rows, places([record(0, [(1, 1), (1, 1)])]), LABELS)
    assert complaint(crowd_rows, [Record("f:1", {"chosen": "x"})]).startswith("f:1: 'chosen'")


def test_conversations_are_cut_at_the_last_answer():
    before = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bread?"
    good = {"chosen": f"{before}\n\nAssistant: bake it", "rejected": f"{before}\n\nAssistant: buy it"}
    bad = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    rows, report = crowd_rows(places([good, bad]))
    assert (report.pairs, report.unreadable) == (1, 1)
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bread?")]
    assert messages_of(rows[0].prompt) == [{"role": role, "content": content} for role, content in turns]
    assert (rows[0].chosen, rows[0].rejected, rows[0].group) == ("bake it", "buy it", "annotators")


@pytest.mark.parametrize("groups", [(), ("honesty",)])
def test_a_file_of_the_schema_becomes_a_data_set(tmp_path, groups):
    path = tmp_path / "uf.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records(300)))
    data = UltraFeedback(path=str(path), features="tfidf", components=8, labels=LABELS)
    dataset = only_groups(rows_dataset(data), groups)
    assert dataset.report["schema"] == "ultrafeedback"
    assert dataset.groups == ["helpfulness", "honesty"]
    shown = {name.split("-")[0] for split in dataset.splits.values() for name in split.users}
    assert shown == (set(groups) or set(LABELS))
    assert "no group 'kindness'" in complaint(only_groups, dataset, ("kindness",))


def test_pairs_of_conversations_become_a_data_set(tmp_path):
    rows = [
        {
            "chosen": f"\n\nHuman: q{i} topic\n\nAssistant: good answer {i % 5}",
            "rejected": f"\n\nHuman: q{i} topic\n\nAssistant: bad answer {i % 7}",
        }
        for i in range(300)
    ]
    path = tiny.write_rows(tmp_path / "hh.jsonl", rows)
    dataset = rows_dataset(Rows(path=str(path), features="tfidf", components=8))
    assert dataset.groups == ["annotators"]


def test_records_of_another_form_are_named_or_skipped_and_listed():
    bad = {"source": "test", "instruction": None, "completions": []}
    items = places([*records(40), bad, [1, 2]])
    assert complaint(ultrafeedback_rows, items, LABELS).startswith("r:40: needs 'instruction', a text")
    reading = RowReport()
    rows, report = ultrafeedback_rows(items, LABELS, reading=reading, on_error="skip")
    assert report.prompts == 40
    assert [message.split(":")[1] for message in reading.skipped] == ["40", "41"]
    assert all("None" not in (row.prompt, row.chosen) for row in rows)
    pairs = places([{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, [1, 2]])
    assert complaint(crowd_rows, pairs).startswith("r:1: 'chosen' and 'rejected' must be texts")
    reading = RowReport()
    assert crowd_rows(pairs, reading=reading, on_error="skip")[1].pairs == 1
    assert len(reading.skipped) == 1


def test_a_completion_without_a_response_is_not_rated():
    odd = record(0, [(1, 4), (2, 3), (3, 2)])
    odd["completions"][0]["response"] = None
    rows, report = ultrafeedback_rows(places([odd]), LABELS)
    assert report.unrated == 1
    assert all(row.chosen != "None" != row.rejected for row in rows)


def test_prepared_data_does_not_ask_for_labels_that_are_none_of_its_own(tmp_path):
    """The defaults of another experiment are no wish; labels that are given are."""
    (tmp_path / "uf.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(300)))
    made = load_dataset(ratings_in(tmp_path / "uf.jsonl", labels=("honesty",)), 10, 20)
    datasets.save(made, tmp_path / "uf")
    assert load_dataset(ratings_in(tmp_path / "uf"), 10, 20).groups == ["honesty"]
    assert load_dataset(Rows(path=str(tmp_path / "uf"), components=4, features="tfidf"), 10, 20).groups == ["honesty"]
    message = complaint(load_dataset, ratings_in(tmp_path / "uf", labels=LABELS), 10, 20)
    assert "prepared with config.data.labels" in message
    plain = load_dataset(ratings_in(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows())), 10, 20)
    datasets.save(plain, tmp_path / "plain")
    assert load_dataset(ratings_in(tmp_path / "plain", labels=LABELS), 10, 20).texts == plain.texts


def ratings_in(path, **settings) -> UltraFeedback:
    return UltraFeedback(path=str(path), components=4, features="tfidf", **settings)
