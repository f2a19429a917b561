"""Ranking responses for the maker of some choices."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from fssa_jax import RewardModel
from fssa_jax.data.dataset import Split, make_table
from fssa_jax.data.rows import Row
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.people import rank as steer
from tests import tiny
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def work(finished):
    return Workdir.open(finished[0] / "run")


CHOICES = [Row("you", f"question {i}", "word1 word2 word3", "word4 " * 9) for i in range(4)]
RESPONSES = [("a", "word1 word5"), ("a", "word2 " * 8), ("b", "word7 word8"), ("a", "word9 word1 word1")]


def test_rankings_of_each_prompt_after_each_choice(work):
    rankings = steer.rank(work, CHOICES, RESPONSES)
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


def test_before_any_choice_everybody_is_ranked_the_same(work):
    other = [Row("you", row.prompt, row.rejected, row.chosen) for row in CHOICES]
    mine, theirs = (steer.rank(work, choices, RESPONSES)[0].probabilities for choices in (CHOICES, other))
    np.testing.assert_allclose(mine[0], theirs[0], atol=1e-6)
    assert np.abs(mine[-1] - theirs[-1]).max() > 1e-4


def test_the_table_shows_places_and_the_trace(work):
    ranking = steer.rank(work, CHOICES, RESPONSES)[0]
    text = steer.format_ranking(ranking, trace=True, width=12)
    assert text.splitlines()[0] == "a"
    assert "…" in text
    assert "choices       0      1      2      3      4" in text


def test_a_model_without_context_cannot_rank(work):
    blind = SimpleNamespace(
        path="run",
        config=SimpleNamespace(model=SimpleNamespace(kind="btl")),
        trained=lambda: SimpleNamespace(model=RewardModel(latent="none"), variables={}),
    )
    assert complaint(steer.rank, blind, CHOICES, RESPONSES).startswith("run: a btl model does not read choices")


def test_texts_that_a_model_of_learnt_texts_does_not_know_are_named(caplog):
    ids = np.array([0])
    splits = {"train": Split(["u"], make_table([[(ids, ids + 1), (ids[:0], ids[:0])]], [0]))}
    texts = [("p", "yes"), ("p", "no"), ("p", "held out")]
    work = SimpleNamespace(dataset=SimpleNamespace(texts=texts, splits=splits))
    choices = [Row("you", "p", "yes", "no"), Row("you", "p", "held out", "no")]
    with caplog.at_level(logging.WARNING):
        model = RewardModel(learnt_texts=3, target="none")
        steer._warn_of_unknown_texts(work, model, choices, [("p", "new")])
        steer._warn_of_unknown_texts(work, RewardModel(), choices, [("p", "new")])
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("1 of 4 chosen or rejected texts were never judged in training")
    assert caplog.messages[1].startswith("1 of 1 responses were never judged in training")


def test_files_of_choices_and_responses(tmp_path):
    path = tiny.write_rows(tmp_path / "c.jsonl", [{"prompt": "p", "response_a": "a", "response_b": "b", "choice": 1}])
    row = steer.read_choices(str(path))[0]
    assert (row.user, row.chosen, row.rejected) == ("you", "b", "a")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert complaint(steer.read_choices, str(empty)).startswith(f"{empty}: no usable row; a row needs prompt, ")
    assert complaint(steer.read_responses, str(empty)).startswith(f"{empty}: no responses")
    responses = tiny.write_rows(tmp_path / "r.jsonl", [{"prompt": "p", "response": "x"}, {"prompt": "p"}])
    assert complaint(steer.read_responses, str(responses)).startswith(f"{responses}:2: needs texts in columns")
