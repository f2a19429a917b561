"""From rows to a prepared data set: separations, what is left out, and files that are whole or absent."""

import dataclasses
import json
import os
from collections import Counter

import jax
import numpy as np
import pytest

from fssa_jax.config import Rows, Synthetic, TextEncoder
from fssa_jax.data import dataset as datasets
from fssa_jax.data.build import load_dataset, synthetic_dataset
from fssa_jax.data.dataset import SPLITS, make_table
from fssa_jax.data.row_dataset import digest_of_rows, rows_dataset
from fssa_jax.data.tokenised import table_with_tokens
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.ops import evaluation_episode
from fssa_jax.types import ChoiceTable
from tests.mistakes import complaint

WORDS = ["bread", "rice", "soup", "dough", "crust", "slow", "fast", "salt"]
FIELDS = ("chosen", "rejected", "count", "group")


def make_rows(users=20, each=8) -> list[dict]:
    """No two rows share a text, so that disjoint pools need to lose none."""
    rng = np.random.default_rng(0)
    return [
        {
            "user_id": f"user-{u}",
            "prompt": f"question {u} {i}",
            "response_a": "a " + " ".join(rng.choice(WORDS, 5)),
            "response_b": "b " + " ".join(rng.choice(WORDS, 5)),
            "choice": int(rng.integers(2)),
            "group": f"group {u % 3}",
        }
        for u in range(users)
        for i in range(each)
    ]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def build(tmp_path, rows, **settings):
    return rows_dataset(Rows(path=write(tmp_path / "rows.jsonl", rows), components=4, **settings))


def choices_of(data, name: str, user: int, pool: int) -> list[tuple]:
    table, count = data.splits[name].table, data.splits[name].table.count[user, pool]
    ids = zip(table.chosen[user, pool, :count], table.rejected[user, pool, :count], strict=True)
    return [(data.texts[a], data.texts[b]) for a, b in ids]


def assert_separate(data):
    for name in SPLITS:
        for u in range(len(data.splits[name].users)):
            context, target = ({t for pair in choices_of(data, name, u, p) for t in pair} for p in (0, 1))
            assert context
            assert target
            assert not context & target


def test_every_choice_arrives_at_its_user_in_its_order(tmp_path):
    rows = make_rows()
    data = build(tmp_path, rows)
    expected = Counter()
    for row in rows:
        pair = [(row["prompt"], row["response_a"]), (row["prompt"], row["response_b"])]
        expected[row["user_id"], *(pair if row["choice"] == 0 else pair[::-1])] += 1
    got = Counter(
        (user, *choice)
        for name in SPLITS
        for u, user in enumerate(data.splits[name].users)
        for p in (0, 1)
        for choice in choices_of(data, name, u, p)
    )
    assert got == expected
    for name in SPLITS:
        for user, group in zip(data.splits[name].users, data.splits[name].table.group, strict=True):
            assert data.groups[group] == f"group {int(user.removeprefix('user-')) % 3}"


def test_made_splits_and_pools_are_disjoint(tmp_path):
    data = build(tmp_path, make_rows())
    users = [user for name in SPLITS for user in data.splits[name].users]
    assert sorted(users) == sorted({f"user-{u}" for u in range(20)})
    assert data.report["users"] == {"train": 16, "val": 2, "test": 2}
    assert data.report["left_out_users"] == []
    assert_separate(data)


def test_a_user_whose_rows_share_texts_still_has_disjoint_pools_and_the_loss_is_counted(tmp_path):
    rows = make_rows(users=6, each=12)
    for row in rows:
        user, number = row["prompt"].split()[1:]
        # A chain: every response is compared with the one before.
        row |= {"prompt": user, "response_a": f"bread {number}", "response_b": f"bread {int(number) + 1}"}
    data = build(tmp_path, rows)
    assert_separate(data)
    kept = sum(int(data.splits[name].table.count.sum()) for name in SPLITS)
    assert data.report["left_out_rows"]["texts in both pools"] == len(rows) - kept > 0


def test_given_splits_and_pools_are_kept(tmp_path):
    rows = make_rows(users=6)
    for i, row in enumerate(rows):
        row["split_user"] = SPLITS[int(row["user_id"][-1]) % 3]
        row["pool"] = "context" if i % 4 == 0 else "target"
    data = build(tmp_path, rows)
    for s, name in enumerate(SPLITS):
        assert data.splits[name].users == [f"user-{s}", f"user-{s + 3}"]
        assert data.splits[name].table.count.tolist() == [[2, 6], [2, 6]]


def test_people_whom_the_source_holds_out_are_held_out(tmp_path):
    """Those for validation, which it lacks, are taken from those for training."""
    rows = make_rows(users=12)
    write(tmp_path / "train.jsonl", rows[: 8 * 8])
    write(tmp_path / "test.jsonl", rows[8 * 8 :])
    splits = rows_dataset(Rows(path=str(tmp_path), components=4)).splits
    assert set(splits["test"].users) == {f"user-{u}" for u in range(8, 12)}
    assert set(splits["train"].users) | set(splits["val"].users) == {f"user-{u}" for u in range(8)}
    assert len(splits["train"].users) > len(splits["val"].users) > 0


def test_a_user_in_two_splits_is_named_with_both_rows(tmp_path):
    rows = make_rows(users=3)
    for row in rows:
        row["split_user"] = SPLITS[int(row["user_id"][-1])]
    rows[5]["split_user"] = "test"
    message = complaint(build, tmp_path, rows)
    assert "'user-0' is in two splits" in message
    assert f"{tmp_path}/rows.jsonl:6" in message
    assert f"{tmp_path}/rows.jsonl:1" in message
    for row in rows[:8]:
        del row["split_user"]
    assert "'user-0' has no split_user" in complaint(build, tmp_path, rows)


def test_a_text_in_both_pools_of_a_user_is_named(tmp_path):
    rows = make_rows(users=4)
    for i, row in enumerate(rows):
        row["pool"] = ("context", "target")[i % 2]
    rows[9] |= {"prompt": rows[8]["prompt"], "response_a": rows[8]["response_b"]}
    message = complaint(build, tmp_path, rows)
    assert message.startswith(f"{tmp_path}/rows.jsonl:9: ")
    assert repr(rows[8]["response_b"]) in message
    assert "'user-1'" in message
    del rows[9]["pool"]
    assert complaint(build, tmp_path, rows).startswith(f"{tmp_path}/rows.jsonl:10: user 'user-1' has no pool here")


def test_nobody_with_enough_rows_is_an_error(tmp_path):
    message = complaint(lambda: build(tmp_path, make_rows(), min_context=5))
    assert message.startswith(f"{tmp_path}/rows.jsonl: no train user with 5 context and 1 target rows (16 users")
    rows = make_rows(users=3)
    for row in rows:
        row["split_user"] = "train"
    assert "no val user" in complaint(build, tmp_path, rows)


def test_two_people_are_too_few(tmp_path):
    assert complaint(build, tmp_path, make_rows(users=2)).startswith(f"{tmp_path}/rows.jsonl: rows of 2 people; ")


def test_users_and_rows_that_are_left_out_are_reported(tmp_path):
    rows = make_rows()
    few = next(r for r in rows if r["user_id"] == "user-3")
    rows = [few] + [r for r in rows if r["user_id"] != "user-3"]
    data = build(tmp_path, [*rows, rows[-1], {"user_id": "eve"}], on_error="skip", max_rows=3)
    assert data.report["left_out_users"] == ["user-3"]
    assert all("user-3" not in data.splits[name].users for name in SPLITS)
    assert data.report["left_out_rows"] == {"texts in both pools": 1, "beyond max_rows": 19 * 2}
    assert (data.report["read"], data.report["duplicates"], len(data.report["skipped"])) == (1 + 19 * 8 + 2, 1, 1)
    assert max(int(data.splits[name].table.count.max()) for name in SPLITS) == 3


def test_held_out_items_are_not_trained_on(tmp_path):
    rows = make_rows()
    assert "'split_item'" in complaint(lambda: build(tmp_path, rows, hold_out_items=True))
    rows[0]["split_item"] = "train"
    assert complaint(lambda: build(tmp_path, rows, hold_out_items=True)).startswith(f"{tmp_path}/rows.jsonl:2: ")
    for i, row in enumerate(rows):
        row["split_item"] = "test" if i % 4 == 0 else "train"
    data = build(tmp_path, rows, hold_out_items=True)
    assert data.splits["train"].table.count.sum(1).tolist() == [6] * 16
    assert data.splits["test"].table.count.sum(1).tolist() == [8] * 2


def test_vectors_beside_the_rows_are_used_and_checked(tmp_path):
    rows = make_rows(users=5)
    vectors = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", vectors)
    np.testing.assert_array_equal(build(tmp_path, rows).features, vectors)
    assert build(tmp_path, rows, features="tfidf").features.shape == (80, 5)
    np.save(tmp_path / "rows.npy", vectors[:-1])
    assert complaint(build, tmp_path, rows).startswith(f"{tmp_path}/rows.npy: 79 rows")
    (tmp_path / "rows.npy").unlink()
    assert "config.data.vectors" in complaint(lambda: build(tmp_path, rows, features="given"))


def test_the_digest_is_of_the_vectors_that_are_used(tmp_path):
    data = Rows(path=write(tmp_path / "rows.jsonl", make_rows(users=5)))
    digests: dict[str, set[str]] = {"auto": set(), "given": set(), "tfidf": set()}
    for value in (0, 1):
        np.save(tmp_path / "rows.npy", np.full((80, 3), value, np.float32))
        for features, found in digests.items():
            found.add(digest_of_rows(dataclasses.replace(data, features=features)))
    assert {features: len(found) for features, found in digests.items()} == {"auto": 2, "given": 2, "tfidf": 1}


def test_rows_need_a_path():
    assert complaint(load_dataset, Rows(), 10, 20).startswith("config.data.path: ")


@pytest.fixture(params=["tfidf", "given", "number"])
def prepared(request, tmp_path):
    """A data set with each kind of featuriser, and the directory that it was saved in."""
    if request.param == "number":
        data = synthetic_dataset(Synthetic(train_users=4, eval_users=3), context=2, targets=3)
    else:
        if request.param == "given":
            np.save(tmp_path / "rows.npy", np.eye(80, 3, dtype=np.float32))
        data = build(tmp_path, make_rows(users=5))
    datasets.save(data, tmp_path / "out" / "prepared")
    return data, tmp_path / "out" / "prepared"


def test_a_saved_data_set_is_the_same(prepared):
    data, directory = prepared
    assert datasets.is_prepared(directory)
    assert os.listdir(directory.parent) == ["prepared"]
    loaded = load_dataset(Rows(path=str(directory)), 10, 20)
    assert (loaded.texts, loaded.groups) == (data.texts, data.groups)
    assert loaded.report == {**data.report, "source_digest": datasets.digest(directory)}
    np.testing.assert_array_equal(loaded.features, data.features)
    np.testing.assert_array_equal(
        loaded.featuriser.transform(data.texts[3:]), data.featuriser.transform(data.texts[3:])
    )
    for name in SPLITS:
        assert loaded.splits[name].users == data.splits[name].users
        for field in FIELDS:
            want, got = (getattr(each.splits[name].table, field) for each in (data, loaded))
            np.testing.assert_array_equal(got, want)
            assert got.dtype == want.dtype
    assert (loaded.truth is None) == (data.truth is None)
    if data.truth is not None:
        np.testing.assert_array_equal(loaded.truth.rewards, data.truth.rewards)
        np.testing.assert_array_equal(loaded.truth.log_prior, data.truth.log_prior)
    assert set(ChoiceTable.__dataclass_fields__) == {*FIELDS, "others", "weight"}


def test_the_halves_of_a_tie_keep_their_weight_to_the_episode(tmp_path):
    """Through the table, a saved directory, a restriction to groups, and the draw."""
    rows = make_rows(users=5)
    ties = {(row["user_id"], row["prompt"]) for row in rows[::4]}
    for row in rows[::4]:
        row["choice"] = "tie"
    data = build(tmp_path, rows, ties="half")
    datasets.save(data, tmp_path / "prepared")
    loaded = load_dataset(Rows(path=str(tmp_path / "prepared"), groups=tuple(data.groups)), 10, 20)
    tied = 0
    for name in SPLITS:
        table = loaded.splits[name].table
        if table.weight is None:
            continue
        for u, p, i in zip(*np.nonzero(np.asarray(table.mask)), strict=True):
            prompt = data.texts[table.chosen[u, p, i]][0]
            expected = 0.5 if (loaded.splits[name].users[u], prompt) in ties else 1.0
            assert table.weight[u, p, i] == expected
            tied += expected == 0.5
        episode = evaluation_episode(jax.random.key(0), table, 0, max_context=3)
        for choices in (episode.context, episode.targets):
            of_text = {}
            for p in (0, 1):
                of_text |= dict(zip(table.chosen[0, p].tolist(), table.weight[0, p].tolist(), strict=True))
            for text, weight in zip(choices.chosen[choices.mask], choices.weight[choices.mask], strict=True):
                assert of_text[int(text)] == float(weight)
    assert tied > 4


def test_without_ties_there_are_no_weights(tmp_path):
    assert all(split.table.weight is None for split in build(tmp_path, make_rows(), ties="half").splits.values())


def test_choices_without_tokens_leave_with_their_weights():
    table = make_table(
        [[np.array([[0, 1], [2, 3], [4, 5]]), np.array([[6, 7]])]], [0], [[np.array([1, 0.5, 0.25]), np.ones(1)]]
    )
    lengths = np.ones(8, np.int32)
    lengths[2] = 0
    kept, lost = table_with_tokens(table, TokenTable(np.ones((8, 1)), 0 * lengths, lengths, lengths, []))
    assert (lost, kept.weight[0, 0, :2].tolist()) == (1, [1, 0.25])


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
def test_a_damaged_prepared_directory_is_an_error(prepared, damage):
    _, directory = prepared
    for file in sorted(directory.iterdir()):
        if damage == "gone" and file.name == "truth.npz":
            continue  # a data set without known people is whole
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
        if damage == "gone":
            file.unlink()
        assert complaint(datasets.load, directory).startswith(f"{directory}: "), file.name
        file.write_bytes(content)
    datasets.load(directory)


@pytest.mark.parametrize(
    ("name", "content"),
    [("meta.json", "{}"), ("meta.json", "[]"), ("meta.json", '{"format": 1}'), ("texts.jsonl", '["p", "a"]\n')],
)
def test_files_that_are_whole_but_do_not_fit_are_an_error(prepared, name, content):
    _, directory = prepared
    (directory / name).write_text(content)
    assert complaint(datasets.load, directory).startswith(f"{directory}: ")


def test_another_format_asks_to_prepare_again(prepared):
    _, directory = prepared
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | {"format": 0}))
    assert complaint(datasets.load, directory).startswith(f"{directory}: prepared by another version")


def test_a_prepared_data_set_refuses_other_settings_by_their_whole_key(tmp_path):
    datasets.save(build(tmp_path, make_rows(users=5)), tmp_path / "prepared")
    said = complaint(load_dataset, Rows(path=str(tmp_path / "prepared"), min_context=2), 10, 20)
    assert "prepared with config.data.min_context=1, not 2; run" in said
    encoder = TextEncoder(pool="last")
    said = complaint(load_dataset, Rows(path=str(tmp_path / "prepared"), text_encoder=encoder), 10, 20)
    assert "prepared with config.data.text_encoder.pool='mean', not 'last'; run" in said
    assert said.endswith("--config.data.text_encoder.pool=last")


def test_a_situation_in_both_pools_of_a_user_is_named(tmp_path):
    rows = make_rows(users=4)
    for i, row in enumerate(rows):
        row |= {"pool": ("context", "target")[i % 2], "situation": f"s{i // 2 if i == 9 else i}"}
    rows[8]["situation"] = rows[9]["situation"]
    assert "is in both pools of user 'user-1'; give it one pool" in complaint(build, tmp_path, rows)
