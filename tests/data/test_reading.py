"""Every schema of people's choices becomes the same rows; what is no choice is counted and named."""

import contextlib
import json
import math

import pytest

from fssa_jax import progress
from fssa_jax.config import Rows
from fssa_jax.data import reading
from fssa_jax.data.conversations import split_pair
from fssa_jax.data.dataset import log_left_out_rows, texts_of
from fssa_jax.data.ratings import rows_of_ratings
from fssa_jax.data.reading import read_rows, read_source
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.data.rows import Rated, Row, parse_rating, parse_row
from fssa_jax.lm.messages import messages_of
from tests.mistakes import complaint


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


ANN = {"user_id": "ann"}
SCHEMAS = {
    "choices": ANN | {"prompt": "p", "response_a": "no", "response_b": "yes", "choice": "B"},
    "texts": ANN | {"prompt": "p", "chosen": "yes", "rejected": "no"},
    "messages": ANN | {"prompt": [user("p")], "chosen": [says("yes")], "rejected": [says("no")]},
    "messages with the prompt": ANN | {"chosen": [user("p"), says("yes")], "rejected": [user("p"), says("no")]},
    "a text and messages": ANN
    | {"prompt": "p", "chosen": [user("p"), says("yes")], "rejected": [user("p"), says("no")]},
    "transcripts": ANN
    | {"chosen": "\n\nHuman: p\n\nAssistant: yes\n\nHuman: thanks", "rejected": "\n\nHuman: p\n\nAssistant: no"},
    "a shared beginning": ANN | {"chosen": "p yes", "rejected": "p no"},
    "one of two": ANN | {"prompt": "p", "responses": ["no", "yes"], "choice": 1},
    "ranking": ANN | {"prompt": "p", "ranking": ["yes", "no"]},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_the_same_choice(tmp_path, name):
    rows, _ = read_rows(write(tmp_path / "rows.jsonl", [SCHEMAS[name]]))
    assert [(r.user, r.prompt, r.responses) for r in rows] == [("ann", "p", ("yes", "no"))]


def test_one_of_n_is_one_choice_and_a_ranking_several():
    row = ANN | {"prompt": "p", "responses": ["a", "b", "c", "d"], "choice": 2}
    assert parse_row(row, "here").responses == ("c", "a", "b", "d")
    assert parse_row(row, "here").others == ("b", "d")


def test_a_ranking_is_the_best_of_all_then_of_the_rest(tmp_path):
    rows, _ = read_rows(write(tmp_path / "r.jsonl", [ANN | {"ranking": ["c", "a", "b"]}]))
    assert [row.responses for row in rows] == [("c", "a", "b"), ("a", "b")]


def test_lists_may_be_cells_of_a_csv_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('user_id,responses,choice\nann,"[""a"", ""b"", ""c""]",1\n')
    assert read_rows(str(path))[0][0].responses == ("b", "a", "c")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"choice": 3}, "must be the place of the chosen response, 0 to 2"),
        ({"choice": -1}, "must be the place"),
        ({"choice": "²"}, "must be the place"),
        ({"choice": True}, "must be the place"),
        ({"responses": ["a"]}, "must be a list of two or more texts"),
        ({"responses": ["a", "b", "a"]}, "holds 'a' twice"),
        ({"responses": ["a", " ", "b"]}, "'responses' is empty"),
        ({"responses": "a"}, "must be a list"),
    ],
)
def test_bad_choices_among_several_are_named(change, reason):
    row = ANN | {"responses": ["a", "b", "c"], "choice": 0} | change
    assert reason in complaint(parse_row, row, "here")


def test_ties_and_unanswered_questions_are_counted_and_named(tmp_path):
    base = ANN | {"response_a": "x", "response_b": "y"}
    said = [0, "tie", None, "skip", 0.5, 1]
    rows = [base | {"prompt": str(i), "choice": choice} for i, choice in enumerate(said)]
    path = write(tmp_path / "rows.jsonl", rows)
    kept, report = read_rows(path)
    assert (len(kept), report.ties, report.unanswered) == (2, 2, 2)
    assert report.undecided[:2] == [f"{path}:2: tie", f"{path}:3: no answer"]
    both, _ = read_rows(path, ties="half")
    assert [(row.prompt, row.chosen) for row in both if row.prompt in "14"] == [
        ("1", "x"),
        ("1", "y"),
        ("4", "x"),
        ("4", "y"),
    ]


def test_ties_are_read_as_the_settings_say(tmp_path):
    base = ANN | {"response_a": "x", "response_b": "y"}
    path = write(tmp_path / "rows.jsonl", [base | {"prompt": f"{choice}", "choice": choice} for choice in (0, "tie")])
    assert [row.chosen for row in read_source(Rows(path=path, ties="drop"))[0]] == ["x"]
    assert [row.chosen for row in read_source(Rows(path=path, ties="half"))[0]] == ["x", "x", "y"]


def test_rows_are_counted_while_they_are_read(tmp_path, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def doing(*what, **unit):
        with progress.doing(*what, **unit) as work:
            yield work
        seen.append((work.name, work.done))

    monkeypatch.setattr(reading, "doing", doing)
    path = write(tmp_path / "rows.jsonl", [SCHEMAS["choices"] | {"prompt": str(i)} for i in range(7)])
    read_rows(path)
    assert seen == [(f"reading {path}", 7)]


def test_ties_that_are_left_out_are_in_the_log(caplog):
    log_left_out_rows({"ties": 2, "unanswered": 1, "undecided": ["f:2: no answer", "f:3: tie", "f:5: tie"]})
    assert caplog.messages == [
        "2 ties left out, the first is f:3: tie",
        "1 rows without an answer left out, the first is f:2: no answer",
    ]


def test_a_file_of_ties_alone_says_so(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ANN | {"response_a": "x", "response_b": "y", "choice": "tie"}])
    said = complaint(read_rows, path)
    assert f"no usable row ({path}:1: tie): all 1 are ties" in said
    assert said.endswith("keep ties with --config.data.ties=half")


def test_turns_are_messages(tmp_path):
    before = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bread?"
    prompt, *answers = split_pair(None, f"{before}\n\nAssistant: bake", f"{before}\n\nAssistant: buy", "here")
    assert messages_of(prompt) == [user("hi"), says("hello"), user("bread?")]
    assert answers == ["bake", "buy"]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (([user("a"), says("x")], [user("b"), says("y")]), "differ before the last response"),
        (([user("a"), says("x")], "text"), "must both be texts, or both lists"),
        (([says("x")], [says("y")]), "without a prompt"),
        (([user("a")], [user("a")]), "without a prompt and a response"),
        (("same", "same"), "identical"),
        (("we ", "we all"), "is the beginning of the other"),
        (([user("a"), says("x")], [user("a"), says("x")]), "identical"),
        (([1], [2]), "must both be texts"),
    ],
)
def test_pairs_that_are_none_are_named(pair, reason):
    assert reason in complaint(split_pair, None, *pair, "here")


def test_responses_that_begin_alike_keep_their_first_words():
    sides = "Q: bread?\nA: hey, bake 12", "Q: bread?\nA: hey, bake 17"
    assert split_pair(None, *sides, "here") == ("Q: bread?", "A: hey, bake 12", "A: hey, bake 17")


def test_what_two_texts_share_ends_at_a_word():
    assert split_pair(None, "we all say yes", "we all say yep", "here") == ("we all say", "yes", "yep")


def test_a_report_counts_kept_ties_and_prompts_that_were_guessed(tmp_path):
    """The tie that is listed twice is two duplicates; a choice between the same two is another observation."""
    said = ("tie", "skip", "tie", 0)
    rows = [ANN | {"response_a": "x", "response_b": "y", "prompt": "p", "choice": choice} for choice in said]
    kept, found = read_rows(write(tmp_path / "ties.jsonl", rows), ties="half")
    assert (found.halved, found.ties, found.unanswered, found.duplicates) == (2, 0, 1, 2)
    assert [(row.chosen, row.weight) for row in kept] == [("x", 0.5), ("y", 0.5), ("x", 1.0)]
    rows = [
        ANN | {"chosen": "Q: a\nyes", "rejected": "Q: a\nno"},
        ANN | {"prompt": "b", "chosen": "s", "rejected": "t"},
    ]
    assert read_rows(write(tmp_path / "pairs.jsonl", rows))[1].implicit == 1


def rated(ratings, **common):
    return [Rated(u, p, y, r, common, f"rows:{i}") for i, (u, p, y, r) in enumerate(ratings)]


def test_ratings_become_choices_between_responses_to_one_prompt():
    ratings = [("ann", p, f"{p}{i}", i / 10) for p in "pq" for i in range(20)] + [("bob", "p", "p1", 1.0)]
    rows = rows_of_ratings(rated(ratings), gap=0.25)
    value = {(p, y): r for _, p, y, r in ratings[:-1]}
    assert {row.user for row in rows} == {"ann"}
    for row in rows:
        assert value[row.prompt, row.chosen] - value[row.prompt, row.rejected] >= 0.25
    pools = [{(r.prompt, y) for r in rows if r.pool == pool for y in r.responses} for pool in ("context", "target")]
    assert not pools[0] & pools[1]
    assert min(map(len, pools)) >= 16
    assert max(sum(row.pool == pool for row in rows) for pool in ("context", "target")) <= 64


def test_ratings_are_not_cut_to_whole_numbers():
    many = rated([("a", "", f"{i}", 4 + i / 100) for i in range(8)])
    assert all(float(row.chosen) > float(row.rejected) for row in rows_of_ratings(many))


@pytest.mark.parametrize("rating", [4.9, "4.9"])
def test_a_rating_of_a_file_is_not_cut_to_a_whole_number(rating):
    assert parse_rating(ANN | {"response": "x", "rating": rating}, "here", "").rating == 4.9


def test_ratings_are_as_far_apart_as_the_settings_say(tmp_path):
    ratings = [ANN | {"response": f"{i / 2}", "rating": i / 2} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", ratings)
    for gap in (0.0, 3.0):
        rows, _ = read_source(Rows(path=path, rating_gap=gap))
        assert (min(float(row.chosen) - float(row.rejected) for row in rows) >= 3) == bool(gap)


def test_a_response_that_was_rated_twice_has_the_mean():
    ratings = [("a", "", y, r) for y, r in [("x", 1), ("x", 5), ("y", 2), ("z", 4), ("w", 3.5)]]
    for row in rows_of_ratings(rated(ratings, pool="context")):
        value = {"x": 3, "y": 2, "z": 4, "w": 3.5}
        assert value[row.chosen] > value[row.rejected]


def test_ratings_of_a_file_are_read(tmp_path):
    rows = [
        {"user_id": f"u{u}", "response": f"film {i}", "rating": (i * (u + 1)) % 7} for u in range(3) for i in range(9)
    ]
    made, report = read_source(Rows(path=write(tmp_path / "r.jsonl", rows)))
    assert report["schema"] == "ratings"
    assert {row.user for row in made} == {"u0", "u1", "u2"}
    for bad, reason in ((math.inf, "finite"), ("high", "a number"), (True, "a number"), (None, "is missing")):
        path = write(tmp_path / "bad.jsonl", [*rows, rows[0] | {"rating": bad}])
        assert reason in complaint(read_rows, path)
    equal = [row | {"rating": 3} for row in rows]
    assert "nobody rated two responses" in complaint(read_rows, write(tmp_path / "e.jsonl", equal))


def test_a_choice_that_is_listed_twice_counts_once(tmp_path):
    row = ANN | {"prompt": "p", "responses": ["a", "b", "c"], "choice": 0}
    again = row | {"responses": ["c", "a", "b"], "choice": 1}
    rows, report = read_rows(
        write(tmp_path / "r.jsonl", [row, again, row | {"situation": "2"}, row | {"situation": "3"}])
    )
    assert (len(rows), report.duplicates) == (3, 1)


def test_a_row_has_its_responses_in_order():
    assert Row("u", "p", "a", "b", ("c",)).responses == ("a", "b", "c")


def test_schemas_of_choices_may_be_mixed(tmp_path):
    rows, _ = read_rows(
        write(tmp_path / "rows.jsonl", [*list(SCHEMAS.values())[:2], SCHEMAS["ranking"] | {"prompt": "q"}])
    )
    assert [(r.prompt, r.responses) for r in rows] == [("p", ("yes", "no")), ("q", ("yes", "no"))]


def test_ratings_with_different_labels_are_not_compared():
    ratings = [
        Rated("a", "", f"{split}{i}", i, {"split_item": split}, "r") for split in ("train", "test") for i in range(6)
    ]
    for row in rows_of_ratings(ratings):
        assert row.chosen[:4] == row.rejected[:4] == row.split_item[:4]


def test_prompts_are_divided_where_there_are_several():
    ratings = rated([("a", f"p{i}", f"y{j}", j) for i in range(20) for j in range(2)])
    rows = rows_of_ratings(ratings)
    assert len(rows) == 20
    assert sum(row.pool == "context" for row in rows) == 10


def test_a_gap_is_met_in_spite_of_rounding():
    assert len(rows_of_ratings(rated([("a", "", "x", 4.1), ("a", "", "y", 4.0)], pool="context"), gap=0.1)) == 1


def test_people_whose_ratings_are_alike_are_counted(tmp_path):
    rows = [{"user_id": u, "response": f"film {i}", "rating": i if u == "a" else 3} for u in "abc" for i in range(8)]
    assert read_rows(write(tmp_path / "r.jsonl", rows))[1].unpaired == 2


def test_a_prompt_that_is_repeated_anywhere_is_not_doubled():
    system = {"role": "system", "content": "be brief"}
    for prompt in ("Hi?", [user("Hi?")], None, ""):
        sides = ([system, user("Hi?"), says(text)] for text in ("yes", "no"))
        assert messages_of(split_pair(prompt, *sides, "here")[0]) == [system, user("Hi?")]
    other = ([user("Ho?"), says(text)] for text in ("yes", "no"))
    assert "begin with another prompt" in complaint(split_pair, "Hi?", *other, "here")


def test_whole_numbers_of_tables_are_places_and_people(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('user_id,responses,choice\n7.0,"[""a"", ""b"", ""c""]",2.0\n7,"[""d"", ""e""]",1\n')
    assert [(row.user, row.chosen) for row in read_rows(str(path))[0]] == [("7", "c"), ("7", "e")]


def test_rows_of_a_source_that_splits_them_are_held_out(tmp_path):
    """The same people are in train and test: training sees the training rows alone."""
    for name in ("train", "test"):
        rows = [
            {
                "user_id": f"u{u}",
                "prompt": f"{name} {u} {i}",
                "response_a": "word a",
                "response_b": "word b",
                "choice": 0,
            }
            for u in range(8)
            for i in range(6)
        ]
        write(tmp_path / f"{name}.jsonl", rows)
    data = rows_dataset(Rows(path=str(tmp_path), features="tfidf", components=1))
    trained = texts_of(data.splits["train"].table)
    assert {data.texts[i][0].split()[0] for i in trained} == {"train"}
    assert data.report["left_out_rows"]["of held-out items"] == 6 * 6
