"""Thumbs and levels of ratings: choices between a text and a threshold, from a file to a table and back."""

import json

import numpy as np
import pytest

from fssa_jax.config import Rows
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import SPLITS, choice_records, seen_in_training, texts_of
from fssa_jax.data.new_people import with_people
from fssa_jax.data.ratings import levels_of_ratings
from fssa_jax.data.reading import read_rows
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.data.rows import Rated, parse_row
from fssa_jax.data.summary import summary
from fssa_jax.data.thresholds import THUMB, Threshold, is_threshold, rating_threshold
from fssa_jax.data.tokenised import only_pairs_to_predict, only_with_tokens, pairs_to_predict
from fssa_jax.lm.token_table import TokenTable
from tests.mistakes import complaint

ANN = {"user_id": "ann", "prompt": "p"}
WORDS = ["bread", "rice", "soup", "dough", "crust", "slow", "fast", "salt"]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def made_rows(users: int = 12, each: int = 5, first: int = 0) -> list[dict]:
    """Of every person pairs, thumbs and ratings from 1 to 4, no text twice."""
    rng = np.random.default_rng(first)

    def text() -> str:
        return " ".join(rng.choice(WORDS, 6))

    out = []
    for u in range(first, first + users):
        for i in range(each):
            common = {"user_id": f"u{u}", "prompt": f"question {u} {i}"}
            out += [
                common | {"response_a": "a " + text(), "response_b": "b " + text(), "choice": int(rng.integers(2))},
                common | {"response": "c " + text(), "label": bool(rng.integers(2))},
                common | {"response": "d " + text(), "rating": int(rng.integers(1, 5))},
            ]
    return out


def build(tmp_path, rows, **settings):
    return rows_dataset(Rows(path=write(tmp_path / "rows.jsonl", rows), components=4, ratings="levels", **settings))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return build(tmp_path_factory.mktemp("mixed"), made_rows())


@pytest.mark.parametrize(
    ("label", "up"),
    [
        (True, True),
        (False, False),
        ("up", True),
        ("down", False),
        (1, True),
        (0.0, False),
        ("Yes", True),
        ("no", False),
    ],
)
def test_a_thumb_is_a_choice_between_the_text_and_the_threshold(label, up):
    row = parse_row(ANN | {"response": "yes", "label": label}, "here")
    assert row.responses == (("yes", THUMB) if up else (THUMB, "yes"))
    assert row.alone
    assert row.texts == ([("p", "yes"), THUMB.text] if up else [THUMB.text, ("p", "yes")])


@pytest.mark.parametrize("completion", ["yes", [{"role": "assistant", "content": "yes"}]])
def test_thumbs_are_read_in_the_format_of_kto(tmp_path, completion):
    rows = [ANN | {"prompt": [{"role": "user", "content": "p"}], "completion": completion, "label": True}]
    kept, report = read_rows(write(tmp_path / "rows.jsonl", rows))
    assert [row.responses for row in kept] == [("yes", THUMB)]
    assert report.thumbs == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "maybe"}, "column 'label' must be true (up) or false (down), got 'maybe'"),
        ({"label": 2}, "column 'label' must be"),
        ({"response": " "}, "column 'response' is empty"),
        ({"response": None, "completion": [{"role": "user"}]}, "column 'completion' must be a text"),
        ({"label": None}, "column 'label' says no answer"),
    ],
)
def test_a_bad_thumb_is_named(change, reason):
    said = complaint(parse_row, ANN | {"response": "yes", "label": True} | change, "rows.jsonl:3")
    assert said.startswith("rows.jsonl:3: ")
    assert reason in said


def test_a_file_may_mix_all_kinds_of_rows(tmp_path):
    rows = [
        ANN | {"response": "r", "rating": 2},
        ANN | {"response_a": "x", "response_b": "y", "choice": 1},
        ANN | {"response": "t", "label": "down"},
        ANN | {"response": "u", "label": None},
        ANN | {"ranking": ["k", "l", "m"]},
        ANN | {"response": "s", "rating": 3},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    kept, report = read_rows(path, ratings="levels")
    limit = rating_threshold(3)
    assert [row.responses for row in kept] == [
        ("y", "x"), (THUMB, "t"), ("k", "l", "m"), ("l", "m"), (limit, "r"), ("s", limit)
    ]  # fmt: skip
    assert (report.levels, report.thumbs, report.unanswered) == ([3.0], 1, 1)
    said = complaint(read_rows, write(tmp_path / "other.jsonl", rows[1:]))
    assert "other.jsonl:5: a rating among rows of other kinds" in said
    assert "--config.data.ratings=levels" in said


def rated(*values: float) -> list[Rated]:
    return [Rated("ann", "p", f"text {i}", value, {}, f"rows:{i}") for i, value in enumerate(values)]


def test_levels_are_the_distinct_ratings_or_quantiles():
    assert levels_of_ratings(rated(5, 1, 3, 3)) == (3.0, 5.0)
    many = levels_of_ratings(rated(*np.linspace(0, 1, 51)))
    np.testing.assert_allclose(many, (0.2, 0.4, 0.6, 0.8))
    assert "all ratings are 3" in complaint(levels_of_ratings, rated(3, 3))


def test_a_rating_passes_thresholds_until_one_that_it_does_not(tmp_path):
    rows = [ANN | {"response": f"r{value}", "rating": value} for value in (1, 2, 4)]
    path = write(tmp_path / "rows.jsonl", rows)
    two, four = rating_threshold(2), rating_threshold(4)
    expected = [(two, "r1"), ("r2", two), (four, "r2"), ("r4", two), ("r4", four)]
    assert [row.responses for row in read_rows(path, ratings="levels")[0]] == expected
    other = write(tmp_path / "other.jsonl", [ANN | {"response": f"r{value}", "rating": value} for value in (0, 3, 9)])
    expected = [(two, "r0"), ("r3", two), (four, "r3"), ("r9", two), ("r9", four)]
    assert [row.responses for row in read_rows(other, ratings="levels", levels=(2.0, 4.0))[0]] == expected


def test_a_text_that_is_called_like_a_threshold_is_another(tmp_path):
    rows = made_rows(users=4)
    rows[0] |= {"prompt": "thumb", "response_a": "thumb", "response_b": "rating ≥ 2"}
    data = build(tmp_path, rows)
    assert int(data.thresholds.sum()) == 4
    assert [text for text, here in zip(data.texts, data.thresholds, strict=True) if here] == [
        ("thumb", ""), *((f"rating ≥ {j}", "") for j in (2, 3, 4))
    ] or set(data.texts[-4:]) == {("thumb", ""), *((f"rating ≥ {j}", "") for j in (2, 3, 4))}  # fmt: skip
    assert ("thumb", "thumb") in data.texts[:-4]


def test_thresholds_connect_no_texts_and_every_text_has_one_pool(mixed):
    """All rows have texts of their own, so none is lost, although they share thresholds."""
    assert not any(mixed.report["left_out_rows"].values())
    assert mixed.report["levels"] == [2.0, 3.0, 4.0]
    thresholds = set(np.flatnonzero(mixed.thresholds).tolist())
    for split in mixed.splits.values():
        for u in range(len(split.users)):
            pools = [
                {int(side[u, p, i]) for side in (split.table.chosen, split.table.rejected) for i in range(n)}
                for p, n in enumerate(split.table.count[u])
            ]
            assert pools[0] & pools[1] <= thresholds
            assert all(pool & thresholds for pool in pools)


def test_a_named_pool_may_hold_the_same_threshold_as_the_other(tmp_path):
    rows = [row | {"pool": ("context", "target")[i % 2]} for i, row in enumerate(made_rows())]
    assert len(build(tmp_path, rows).splits["train"].users)
    again = [*rows, rows[1] | {"pool": "context", "label": True}, rows[1] | {"pool": "target", "label": False}]
    said = complaint(build, tmp_path, again)
    assert "repeats" in said or "in both pools" in said


def test_a_threshold_has_a_feature_of_its_own(mixed):
    real, count = ~mixed.thresholds, int(mixed.thresholds.sum())
    assert not mixed.thresholds[: int(real.sum())].any()
    assert not mixed.features[real][:, -count:].any()
    own = mixed.features[mixed.thresholds]
    assert not own[:, :-count].any()
    seen = mixed.features[seen_in_training(mixed)].astype(np.float64)
    np.testing.assert_allclose(own[:, -count:], np.eye(count) * seen.var(0).sum() ** 0.5, rtol=1e-5)
    np.testing.assert_array_equal(mixed.featuriser.transform(mixed.texts[::-1]), mixed.features[::-1])
    assert "trained without thumbs" not in complaint(mixed.featuriser.transform, [Threshold("rating ≥ 9").text])


@pytest.mark.parametrize("vectors", [False, True])
def test_a_saved_data_set_keeps_its_thresholds(tmp_path, vectors):
    rows = made_rows()
    if vectors:
        number = len(
            {(r["prompt"], t) for r in rows for t in (r.get("response"), r.get("response_a"), r.get("response_b")) if t}
        )
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(number, 3)).astype(np.float32))
    data = build(tmp_path, rows)
    datasets.save(data, tmp_path / "prepared")
    loaded = load_dataset(Rows(path=str(tmp_path / "prepared")), 10, 20)
    assert loaded.texts == data.texts
    np.testing.assert_array_equal(loaded.thresholds, data.thresholds)
    np.testing.assert_array_equal(loaded.featuriser.transform(data.texts[3:]), data.features[3:])


def test_other_people_are_read_with_the_levels_of_training(mixed, tmp_path):
    rows = made_rows(users=3, first=50)
    rows[2]["rating"] = 40
    settings = Rows(ratings="levels")
    wider, split = with_people(mixed, settings, write(tmp_path / "others.jsonl", rows))
    assert len(split.users) == 3
    assert int(wider.thresholds.sum()) == int(mixed.thresholds.sum())
    assert wider.report["levels"] == mixed.report["levels"]
    assert wider.features.shape == (len(wider.texts), mixed.features.shape[1])


@pytest.mark.parametrize(("kind", "remedy"), [("label", "train on thumbs"), ("rating", "ratings=levels")])
def test_a_model_that_knows_no_thresholds_says_so(tmp_path, kind, remedy):
    pairs = [row for row in made_rows() if "choice" in row]
    data = build(tmp_path, pairs)
    assert not data.thresholds.any()
    others = write(tmp_path / "others.jsonl", [row for row in made_rows(3, first=50) if kind in row])
    said = complaint(with_people, data, Rows(ratings="levels"), others)
    assert said.startswith(f"{others}:")
    assert remedy in said


def test_thresholds_are_no_texts_in_what_is_said_of_the_data(mixed):
    real = int((~mixed.thresholds).sum())
    lines = summary(mixed)
    assert f"texts: {real}, 0% of them judged by more than one person" in lines
    alone = sum(mixed.thresholds[split.table.chosen].sum() + mixed.thresholds[split.table.rejected].sum()
                for split in mixed.splits.values())  # fmt: skip
    assert f"choices between a text and a threshold, from thumbs and ratings: {alone}" in lines
    assert not (seen_in_training(mixed) & mixed.thresholds).any()


def test_thumbs_come_back_as_rows(mixed):
    split = mixed.splits["train"]
    known = {(row["prompt"], row["response"]): row["label"] for row in made_rows() if "label" in row}
    records = [r for u in range(len(split.users)) for r in choice_records(split, mixed.texts, u, 30)]
    thumbs = [record for record in records if "label" in record]
    assert thumbs
    assert all(known[record["prompt"], record["response"]] == record["label"] for record in thumbs)
    assert {"label", "choice"} == {key for record in records for key in ("label", "choice") if key in record}


def tokens_of(data, missing: int = -1) -> TokenTable:
    lengths = np.where(data.thresholds, 0, 4).astype(np.int32)
    lengths[missing if missing >= 0 else np.flatnonzero(data.thresholds)[0]] = 0
    return TokenTable(np.zeros((len(lengths), 4)), 0 * lengths, lengths, lengths, [])


def test_a_policy_reads_thumbs_and_predicts_pairs(tmp_path):
    data = build(tmp_path, made_rows())
    before = {name: split.table for name, split in data.splits.items()}
    only_with_tokens(data, tokens_of(data))
    assert data.splits["train"].table is before["train"]  # a threshold has no tokens, and needs none
    gone = int(before["train"].chosen[0, 0, 0])
    if not data.thresholds[gone]:
        only_with_tokens(data, tokens_of(data, gone))
        assert data.report["left_out_rows"]["of texts that are too long"] > 0
    only_pairs_to_predict(data, ("val", "test"))
    for name in SPLITS:
        table = data.splits[name].table
        either = data.thresholds[table.chosen] | data.thresholds[table.rejected]
        assert (either & np.asarray(table.mask))[:, 0].any()
        assert (either & np.asarray(table.mask))[:, 1].any() == (name == "train")
    assert sum(n for what, n in data.report["left_out_rows"].items() if "policy" in what) > 0


def test_a_policy_needs_pairs(tmp_path):
    data = build(tmp_path, [row for row in made_rows() if "label" in row])
    said = complaint(pairs_to_predict, data.splits["test"].table, data.thresholds)
    assert "a policy is trained on pairs" in said


def test_ids_of_texts_and_thresholds_are_of_the_table(mixed):
    ids = texts_of(mixed.splits["train"].table)
    assert {is_threshold(mixed.texts[i]) for i in ids} == {True, False}
