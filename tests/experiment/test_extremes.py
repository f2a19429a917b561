"""Data at the edges of what people bring, through the whole of the default procedure."""

import math

import numpy as np
import pytest

from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from tests import tiny
from tests.mistakes import complaint

pytestmark = pytest.mark.experiments


def trained(directory, records, **settings):
    config = tiny.auto_config(
        tiny.write_rows(directory / "rows.jsonl", records), patience=2, specialist_steps=0, **settings
    )
    config.train.steps = 60
    train(config, directory / "run")
    return directory / "run"


def alike(users: int) -> list[dict]:
    """Everybody makes the very same choices; some of the longer and some of the shorter response."""
    first = tiny.rows(users=1, number=14)
    rng = np.random.default_rng(0)
    for record in first:
        if rng.random() < 0.3:
            record["choice"] = 1 - record["choice"]
    return [r | {"user_id": f"u{u}", "group": "all"} for u in range(users) for r in first]


def test_people_who_are_all_alike_get_the_population_model(tmp_path):
    report = evaluate_workdir(trained(tmp_path, alike(24)))
    assert report["verdict"]["helps"] != "yes"
    for k, gain in report["gain"].items():
        assert gain["mean"] == pytest.approx(0, abs=1e-6), k


def test_one_choice_per_person_is_one_line(tmp_path):
    records = [r for r in tiny.rows(users=24) if r["prompt"] == "question 0"]
    message = complaint(trained, tmp_path, records)
    assert "\n" not in message
    assert "no train user with 1 context and 1 target rows" in message


def test_twenty_people_of_five_choices_are_enough_for_a_report(tmp_path):
    records = [r for r in tiny.rows(users=20) if int(r["prompt"].split()[1]) < 5]
    report = evaluate_workdir(trained(tmp_path, records))
    assert report["users"]["scored"] >= 2
    assert all(math.isfinite(gain["mean"]) for gain in report["gain"].values())


def test_of_a_person_of_very_many_choices_some_are_kept(tmp_path):
    many = [r | {"user_id": "busy", "group": "long"} for r in tiny.rows(users=1, number=400, seed=1)]
    workdir = trained(tmp_path, [*tiny.rows(users=16), *many])
    work = Workdir.open(workdir)
    counts = np.concatenate([np.asarray(split.table.count).sum(1) for split in work.dataset.splits.values()])
    assert counts.max() == 2 * work.config.data.max_rows < 400  # of each pool; the others are counted in a warning
    report = evaluate_workdir(workdir)
    assert all(math.isfinite(gain["mean"]) for gain in report["gain"].values())
