"""Thumbs and ratings from training to use: a reward model, a policy that reads them, and a base that does not."""

import itertools
import json

import jax
import numpy as np
import pytest

import fssa_jax
from fssa_jax.data.rows import parse_row
from fssa_jax.data.thresholds import THUMB, is_threshold, rating_threshold
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.make import make
from fssa_jax.experiment.train import train
from fssa_jax.people.choices import read_choices
from fssa_jax.people.rank import rank
from fssa_jax.tasks.task import MAIN
from tests import tiny, tiny_policy
from tests.mistakes import complaint


def rows() -> list[dict]:
    """The people of `tiny`, who also judge texts alone."""
    out = tiny.rows()
    for i, row in enumerate(tiny.rows(seed=1)):
        common = {"user_id": row["user_id"], "prompt": row["prompt"], "group": row["group"]}
        liked = row["response_b"] if row["choice"] else row["response_a"]
        other = row["response_a"] if row["choice"] else row["response_b"]
        if i % 3 == 0:
            out.append(common | {"response": liked, "label": True})
        elif i % 3 == 1:
            out.append(common | {"completion": other, "label": "down"})
        else:
            out.append(common | {"response": liked, "rating": 3 - i % 2})
            out.append(common | {"response": other, "rating": 1 + i % 2})
    return out


def configured(config, path):
    config.data.path, config.data.ratings = str(path), "levels"
    return config


@pytest.fixture(scope="module")
def trained(once):
    """A directory with rows and, in run, a reward model that was trained on them."""

    def made(directory):
        path = tiny.write_rows(directory / "rows.jsonl", rows())
        train(configured(tiny.config(), path), directory / "run")

    return once("thumbs", made)


@pytest.fixture(scope="module")
def person(trained):
    return fssa_jax.load(trained / "run")


def test_thumbs_and_ratings_move_the_latent_each_its_own_way(person):
    long, short = "word1 " * 9, "word2 word3"
    nobody = person.infer([]).mean
    up, down = (person.infer([("question 0", long, liked)]).mean for liked in (True, False))
    assert float(np.abs(up - nobody).max()) > 1e-4
    assert float(np.abs(up - down).max()) > 1e-4
    row = {"prompt": "question 0", "response": long, "label": "up"}
    np.testing.assert_allclose(person.infer([row]).mean, up, atol=1e-6)
    assert person.levels == (2.0, 3.0)
    rated = [{"prompt": "question 0", "response": long, "rating": rating} for rating in (1, 2, 3)]
    means = [person.infer([row]).mean for row in rated]
    assert min(float(np.abs(a - b).max()) for a, b in itertools.pairwise(means)) > 1e-5
    two = rating_threshold(2), rating_threshold(3)
    assert person.checked([rated[1]]) == [("question 0", long, two[0]), ("question 0", two[1], long)]
    mixed = [("question 1", long, short), ("question 2", short, False), rated[2]]
    np.testing.assert_allclose(person.infer(mixed).mean, person.infer(mixed[::-1]).mean, atol=1e-5)
    assert rank(person, mixed, [("question 0", long), ("question 0", short)], trace=True)[0].probabilities.shape == (
        5,
        2,
    )


def test_a_file_of_one_persons_thumbs_and_ratings_is_read_with_the_levels_of_training(person, tmp_path):
    path = tiny.write_rows(
        tmp_path / "mine.jsonl",
        [
            {"prompt": "question 0", "response": "word1", "label": 0},
            {"prompt": "question 1", "response": "word2", "rating": 2.5},
            {"prompt": "question 2", "chosen": "word3", "rejected": "word4"},
        ],
    )
    choices = read_choices(path, person.levels)
    assert choices == [
        ("question 0", THUMB, "word1"),
        ("question 2", "word3", "word4"),
        ("question 1", "word2", rating_threshold(2)),
        ("question 1", rating_threshold(3), "word2"),
    ]
    assert person.infer(choices).mean.shape == (1, 8)


def test_a_model_of_pairs_says_that_it_knows_no_thumbs_and_no_levels(finished, tmp_path):
    person = fssa_jax.load(finished[0] / "run")
    said = complaint(person.infer, [("question 0", "word1", True)])
    assert "trained without thumbs" in said
    assert "train on thumbs" in said
    said = complaint(person.infer, [{"prompt": "p", "response": "word1", "rating": 2}])
    assert "choice 0 of a person: a rating" in said
    assert "--config.data.ratings=levels" in said
    mixed = [{"prompt": "p", "response": "a", "label": 1}, {"prompt": "p", "response": "b", "rating": 1}]
    path = tiny.write_rows(tmp_path / "mine.jsonl", mixed)
    assert f"{path}:2: a rating among rows" in complaint(read_choices, path, person.levels)


def test_they_are_scored_and_steering_is_of_pairs(trained, tmp_path):
    report = evaluate_workdir(trained / "run")
    assert report["targets"]["thumbs_and_ratings"] > 0
    assert report["targets"]["rows"] > report["targets"]["thumbs_and_ratings"]
    others = tiny.write_rows(tmp_path / "others.jsonl", [row | {"user_id": f"new {row['user_id']}"} for row in rows()])
    assert evaluate_workdir(trained / "run", data=str(others))["users"]["scored"] == 24
    records = [
        json.loads(line) for line in (trained / "run" / "report" / "example_choices.jsonl").read_text().splitlines()
    ]
    assert all(parse_row(record | {"user_id": "you"}, "here") for record in records)


@pytest.fixture(scope="module")
def policy(trained, tiny_base, once):
    config = configured(tiny_policy.config("", tiny_base, trained / "run"), trained / "rows.jsonl")
    return once("thumbs policy", lambda directory: train(config, directory / "run")) / "run"


def test_a_policy_reads_thumbs_and_is_trained_on_pairs(policy):
    person = fssa_jax.load(policy)
    task = person.task
    tables = task.tables("train")
    people = task.draw(MAIN)(jax.random.split(jax.random.key(0), 40), tables)
    thresholds = task.dataset.thresholds
    context, targets = people.episode.context, people.episode.targets

    def alone(choices):
        return (thresholds[choices.chosen] | thresholds[choices.rejected]) & np.asarray(choices.mask)

    assert alone(context).any()
    assert not alone(targets).any()
    assert np.asarray(targets.mask).any()
    assert not alone_in_table(task.dataset.splits["test"].table, thresholds)[:, 1].any()
    up, down = (person.infer([("question 0", "word1 " * 9, liked)]).mean for liked in (True, False))
    assert float(np.abs(up - down).max()) > 1e-4


def alone_in_table(table, thresholds):
    return (thresholds[table.chosen] | thresholds[table.rejected]) & np.asarray(table.mask)


def test_a_base_is_not_fine_tuned_on_thresholds(trained, tiny_base, tmp_path):
    config = configured(tiny_policy.sft_config("", tiny_base), trained / "rows.jsonl")
    task = make(config, tmp_path / "run").task
    assert task.dataset.thresholds.any()
    drawn = {task.dataset.texts[i] for split in ("train", "val") for i in task.split_texts(split)}
    assert len(drawn) > 50
    assert not any(is_threshold(text) for text in drawn)


def test_a_policy_of_pairs_reads_the_thumbs_that_its_encoder_knows(trained, tiny_base, tmp_path):
    """No rows of its own judge a text alone."""
    path = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows())
    config = tiny_policy.config(path, tiny_base, trained / "run", steps=2, population_steps=0, specialist_steps=0)
    train(config, tmp_path / "run")
    person = fssa_jax.load(tmp_path / "run")
    assert not person.task.dataset.thresholds.any()
    up, down = (person.infer([("question 0", "word1 " * 9, liked)]).mean for liked in (True, False))
    assert float(np.abs(up - down).max()) > 1e-4
