"""Ranking responses for the maker of some choices."""

import dataclasses
import json
import logging

import numpy as np
import pytest

import fssa_jax
from fssa_jax.config import Btl, RewardConfig
from fssa_jax.data.rows import Row
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people.choices import read_choices, read_responses
from fssa_jax.people.person import PersonModel
from fssa_jax.people.rank import Ranking, format_ranking, format_rankings, rank
from fssa_jax.tasks.reward import RewardTask
from tests import tiny
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def person(finished):
    return fssa_jax.load(finished[0] / "run")


CHOICES = [(f"question {i}", "word1 word2 word3", "word4 " * 9) for i in range(4)]
RESPONSES = [("a", "word1 word5"), ("a", "word2 " * 8), ("b", "word7 word8"), ("a", "word9 word1 word1")]


def test_rankings_of_each_prompt_after_each_choice(person):
    rankings = rank(person, CHOICES, RESPONSES, trace=True)
    assert [r.prompt for r in rankings] == ["a", "b"]
    first = rankings[0]
    assert first.responses == [text for prompt, text in RESPONSES if prompt == "a"]
    assert first.rewards.shape == first.probabilities.shape == (5, 3)
    np.testing.assert_allclose(first.probabilities.sum(1), 1, atol=1e-5)
    assert sorted(first.order) == [0, 1, 2]
    best = first.probabilities[-1]
    assert best[first.order[0]] == best.max()
    assert (np.abs(np.diff(first.probabilities, axis=0)).max(1) > 0).all()  # every choice moves something
    np.testing.assert_array_equal(rankings[1].probabilities, 1)


def test_rankings_are_the_scores_of_the_person_after_each_choice(person):
    """Whoever ranks and whoever infers and scores by hand say the same."""
    [ranking] = rank(person, CHOICES, RESPONSES[:2], trace=True)
    for k in range(5):
        rewards = person.score(person.infer(CHOICES[:k]), RESPONSES[:2])
        np.testing.assert_allclose(ranking.rewards[k], rewards, atol=1e-5)


def test_probabilities_have_the_lapses_of_the_model(person, monkeypatch):
    without = rank(person, CHOICES, RESPONSES, trace=True)
    infer = person.infer_people
    monkeypatch.setattr(
        person, "infer_people", lambda people: dataclasses.replace(infer(people), lapse=np.linspace(0, 0.4, 5))
    )
    for before, ranking in zip(without, rank(person, CHOICES, RESPONSES, trace=True), strict=True):
        lapse, n = np.linspace(0, 0.4, 5)[:, None], len(ranking.responses)
        np.testing.assert_allclose(ranking.probabilities, (1 - lapse) * before.probabilities + lapse / n, rtol=1e-5)
        np.testing.assert_array_equal(ranking.rewards, before.rewards)


def test_before_any_choice_everybody_is_ranked_the_same(person):
    other = [(prompt, rejected, chosen) for prompt, chosen, rejected in CHOICES]
    mine, theirs = (rank(person, choices, RESPONSES)[0].probabilities for choices in (CHOICES, other))
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
    assert np.abs(mine[-1] - theirs[-1]).max() > 1e-4


def test_the_table_shows_places_and_the_trace(person):
    ranking = rank(person, CHOICES, RESPONSES, trace=True)[0]
    text = format_ranking(ranking, trace=True, width=12)
    assert text.splitlines()[0] == "a"
    assert "…" in text
    assert "choices       0      1      2      3      4" in text


def test_rankings_as_json_are_best_first(person):
    rankings = rank(person, CHOICES, RESPONSES, trace=True)
    records = [json.loads(line) for line in format_rankings(4, rankings, False, True).splitlines()]
    assert [record["prompt"] for record in records] == ["a", "b"]
    assert records[0]["rewards"] == sorted(records[0]["rewards"], reverse=True)
    assert records[0]["responses"][0] == rankings[0].responses[rankings[0].order[0]]
    assert format_rankings(4, rankings, False, False).startswith("After 4 choices")


def test_without_a_trace_only_the_first_and_the_last_are_scored(person):
    for whole, ends in zip(rank(person, CHOICES, RESPONSES, trace=True), rank(person, CHOICES, RESPONSES), strict=True):
        np.testing.assert_allclose(ends.probabilities, whole.probabilities[[0, -1]], atol=1e-6)
        assert ends.order == whole.order
    assert "After 4 choices" in format_rankings(4, rank(person, CHOICES, RESPONSES), False, False)


def test_a_person_of_thousands_of_choices_is_ranked(person):
    """Of few texts: the table has as many rows as there are texts, not as there are places for them."""
    many = [("question 0", f"word{i % 60} word1", f"word{i // 60} word2") for i in range(3000)]
    number = len(person.checked(many))
    assert number == 3000
    tables = []
    table = person._table
    person._table = lambda texts, size: tables.append(size) or table(texts, size)
    try:
        ranking = rank(person, many, RESPONSES)[0]
    finally:
        del person._table
    assert np.isfinite(ranking.probabilities).all()
    assert max(tables) < 200


def test_nothing_to_rank_is_said(person):
    assert complaint(rank, person, CHOICES, []).startswith("no responses to rank")


def test_a_model_without_context_cannot_rank(finished):
    work = Workdir.open(finished[0] / "run")
    blind = Workdir(work.path, RewardTask(RewardConfig(model=Btl()), work.dataset))
    assert complaint(blind.person).startswith(f"{work.path}: a Btl model reads no choices")


def test_texts_that_a_model_of_learnt_texts_does_not_know_are_named(finished, caplog):
    """Texts of held-out people are in the table, but no row of training is about them: they too are news."""
    task = Workdir.open(finished[0] / "run").task
    seen, table = task.dataset.splits["train"].table, task.dataset.splits["test"].table
    texts = task.dataset.texts
    known, held_out = texts[int(seen.chosen[0, 0, 0])], texts[int(table.chosen[0, 0, 0])]
    said = []
    for learn_texts, response in (("yes", "none"), ("no", "linear")):
        task.config.model.learn_texts, task.config.model.response = learn_texts, response
        model = task.model()
        with caplog.at_level(logging.WARNING):
            person = PersonModel(task, model, model, task.start("main", {}))
            latent = person.infer([(known[0], known[1], "of nobody"), (*held_out, "of nobody")])
            person.score(latent, [("p", "new")])
        said.append(list(caplog.messages))
        caplog.clear()
    assert len(said[0]) == 2
    assert said[0][0].startswith("3 of 4 texts were never judged in training")
    assert said[0][1].startswith("1 of 1 responses were never judged in training")
    assert said[1] == []


def test_files_of_choices_and_responses(tmp_path):
    path = tiny.write_rows(tmp_path / "c.jsonl", [{"prompt": "p", "response_a": "a", "response_b": "b", "choice": 1}])
    assert read_choices(str(path)) == [("p", "b", "a")]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert complaint(read_choices, str(empty)).startswith(f"{empty}: no usable row; a row needs response_a, ")
    assert complaint(read_responses, str(empty)).startswith(f"{empty}: no responses")
    responses = tiny.write_rows(tmp_path / "r.jsonl", [{"prompt": "p", "response": "x"}, {"prompt": "p"}])
    assert complaint(read_responses, str(responses)).startswith(f"{responses}:2: needs texts in columns")


def test_choices_are_tuples_or_rows(person):
    """The same person, whichever way their choices are written down."""
    expected = person.infer(CHOICES[:2]).mean
    rows = [Row("somebody", *choice) for choice in CHOICES[:2]]
    records = [{"prompt": p, "response_a": b, "response_b": a, "choice": 1, "user_id": "me"} for p, a, b in CHOICES[:2]]
    nameless = [{name: value for name, value in record.items() if name != "user_id"} for record in records]
    null = [{**record, "user_id": None} for record in nameless]  # as tables without the column are read
    for choices in (rows, records, nameless, null, [list(choice) for choice in CHOICES[:2]], [rows[0], CHOICES[1]]):
        np.testing.assert_allclose(person.infer(choices).mean, expected, atol=1e-6)
    missing = {"prompt": "p", "response_a": "a", "response_b": "b"}
    assert complaint(person.infer, [missing]).startswith("choice 0 of a person: ")
    assert "'choice'" in complaint(person.infer, [missing])
    assert "'choice'" in complaint(person.infer, [{**missing, "choice": 3}])
    assert "or a row" in complaint(person.infer, [("p", "a")])


def test_a_reward_model_infers_many_people_at_once_as_each_alone(person):
    people = [[], CHOICES[:1], CHOICES, [("a new prompt", "word3 of a new text", "word8")]]
    together = person.infer_people(people)
    assert together.mean.shape == together.scale.shape == (4, 8)
    assert (np.asarray(together.scale) > 0).all()
    for row, choices in enumerate(people):
        alone = person.infer(choices)
        np.testing.assert_allclose(alone.mean[0], together.mean[row], atol=1e-5)
        np.testing.assert_allclose(alone.scale[0], together.scale[row], atol=1e-5)
    assert "no people to infer" in complaint(person.infer_people, [])
    assert "a choice instead of a person" in complaint(person.infer_people, CHOICES)
    # A reward model reads any number of choices; they are in any order.
    many = [(f"question {i}", "word1 word2 word3", "word4 " * 9) for i in range(30)]
    np.testing.assert_allclose(person.infer(many).mean, person.infer(many[::-1]).mean, atol=1e-5)


def test_scores_of_a_reward_model_are_rewards_in_nats(person):
    """Their differences are log-odds of the model's own predictions, averaged over z as they are."""
    latent = person.infer(CHOICES)
    rewards = person.score(latent, RESPONSES)
    assert rewards.shape == (4,)
    sampled = person.sampled_rewards(latent, RESPONSES)
    assert sampled.shape == (person.task.config.evaluate.samples, 1, 4)
    np.testing.assert_allclose(sampled[:, 0].mean(0), rewards, atol=1e-6)
    np.testing.assert_allclose(person.score(latent, RESPONSES[::-1]), rewards[::-1], atol=1e-6)
    assert person.score(latent, []).shape == (0,)
    assert "a latent of 2 people" in complaint(person.score, person.infer_people([CHOICES, []]), RESPONSES)
    assert "response 0: needs two texts, (prompt, response)" in complaint(person.score, latent, [("p",)])
    assert "response 0: empty" in complaint(person.score, latent, [("p", " ")])
    assert "give [(prompt, response)]" in complaint(person.score, latent, "word1")


def test_a_person_of_a_reward_model_is_who_the_evaluation_scores(finished, person):
    """The texts of a test person under their numbers, and given anew as tuples: one and the same q(z | C)."""
    work = Workdir.open(finished[0] / "run")
    split, texts = work.dataset.splits["test"], work.dataset.texts
    predictor = work.task.predictor("main", split)(work.trained()[0])
    episodes = episodes_of(split, np.arange(1), 0, 3)
    context = episodes.context
    choices = [
        (*texts[a], texts[b][1])
        for a, b in zip(np.asarray(context.chosen)[0], np.asarray(context.rejected)[0], strict=True)
    ]
    np.testing.assert_allclose(person.infer(choices).mean, predictor.latents(episodes, 3), atol=1e-5)
    assert np.abs(predictor.latents(episodes, 3) - predictor.latents(episodes, 0)).max() > 1e-4


def test_a_table_of_rankings_shows_control_characters():
    even = np.full((1, 2), 0.5)
    table = format_ranking(Ranking("p\x1b[2J", ["a\x1b[2J", "b\x07"], even, even))
    for shown in ("p\\x1b[2J", "a\\x1b[2J", "b\\x07"):
        assert shown in table
    assert table.replace("\n", "").isprintable()
