"""Runs that are killed, started twice, prolonged, damaged or moved: nothing is lost, and what is wrong is said."""

import copy
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fssa_jax.config import Rows
from fssa_jax.data import dataset as datasets
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.reports import report_directory
from fssa_jax.experiment.resume import _check_source, _of_population
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import locked
from tests import tiny
from tests.mistakes import complaint
from tests.trees import assert_same


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run, with the configuration that made it."""
    directory, config = finished
    shutil.copytree(directory / "run", tmp_path / "run")
    return tmp_path / "run", copy.deepcopy(config)


def test_two_trainings_of_one_directory_are_refused(run):
    workdir, config = run
    with locked(workdir, "training"):
        message = complaint(train, config, workdir)
    assert message == f"{workdir}: another process is training here; wait for it, or give another --workdir"
    train(config, workdir)


def test_a_start_that_failed_leaves_nothing(tmp_path):
    assert "no such file" in complaint(train, tiny.config(tmp_path / "none.jsonl"), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.faults
def test_what_killed_runs_left_is_no_obstacle_and_is_removed(finished, tmp_path):
    """Killed while data/ was written for the first time, and in an evaluation, by processes that are gone."""
    _, config = finished
    workdir, pid = tmp_path / "run", dead_process()
    left = [workdir / f".data.{pid}.tmp", workdir / f".report.{pid}.old", workdir / f".config.json.{pid}.tmp"]
    for path in left[:2]:
        path.mkdir(parents=True)
        (path / "half").write_text("…")
    left[2].write_text("{")
    shutil.rmtree(left[1])  # only a directory that was replaced comes back
    ours = workdir / f".mine.{os.getpid()}.tmp"
    ours.mkdir()
    train(config, workdir)
    assert not any(path.exists() for path in left)
    assert ours.exists()


def test_a_directory_that_was_being_replaced_comes_back(run):
    workdir, config = run
    os.rename(workdir / "data", workdir / f".data.{dead_process()}.old")
    train(config, workdir)
    assert Workdir.open(workdir).dataset.texts


def test_rows_that_changed_are_noticed(finished, tmp_path):
    _, config = finished
    config = copy.deepcopy(config)
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()))
    config.train.steps = 5
    train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(seed=1))
    assert f"{config.data.path}: changed since {tmp_path / 'run'}" in complaint(train, config, tmp_path / "run")


def test_a_prepared_directory_that_was_prepared_again_is_noticed(tmp_path):
    rows, config = tiny.config(tmp_path / "rows.jsonl").data, tiny.config(tmp_path / "prepared")

    def prepare(seed: int) -> None:
        tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=8, seed=seed))
        datasets.save(rows_dataset(rows), tmp_path / "prepared")

    prepare(0)
    dataset = tiny.load_dataset(config)
    prepare(0)
    _check_source(tmp_path / "run", config, dataset)
    prepare(1)
    message = complaint(_check_source, tmp_path / "run", config, dataset)
    assert message.startswith(f"{config.data.path}: changed since {tmp_path / 'run'}")


def test_latest_checkpoints_that_are_gone_are_no_fresh_start(run):
    workdir, config = run
    shutil.rmtree(workdir / "checkpoints" / "latest")
    message = complaint(train, config, workdir)
    assert "holds no checkpoint, but main was trained here for 20 steps" in message
    (workdir / "metrics.jsonl").unlink()
    assert "holds no checkpoint, but main was trained here" in complaint(train, config, workdir)


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_settings_that_were_changed_are_noticed(run, name):
    workdir, config = run
    text = (workdir / name).read_text()
    (workdir / name).write_text(text.replace("0", "1", 1))
    actions = [lambda: evaluate_workdir(workdir)]
    actions += [lambda: train(config, workdir), lambda: Workdir.open(workdir)] if name == "config.json" else []
    for action in actions:
        assert f"{workdir / name}: damaged (its checksum does not match)" in complaint(action)
    (workdir / name).write_text("[]")
    assert complaint(evaluate_workdir, workdir).startswith(f"{workdir / name}: not a JSON object")
    (workdir / name).write_text("{}")
    assert "written by another version" in complaint(evaluate_workdir, workdir)


@pytest.mark.parametrize("kind", ["tfidf", "given"])
def test_no_flipped_bit_of_the_data_is_read(tmp_path, kind):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=6))
    if kind == "given":
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(len(tiny.rows(users=6)) * 2, 3)))
    data = Rows(path=str(rows), components=3, features=kind)
    datasets.save(rows_dataset(data), tmp_path / "data")
    rng = np.random.default_rng(1)
    for file in sorted((tmp_path / "data").iterdir()):
        content = file.read_bytes()
        for place in rng.integers(0, len(content), 12):
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(flipped)
            assert complaint(datasets.load, tmp_path / "data").startswith(f"{tmp_path / 'data'}: "), (file.name, place)
        file.write_bytes(content)
    datasets.load(tmp_path / "data")


@pytest.mark.faults
def test_training_is_extended_where_the_rates_so_far_stay_the_same(finished, tmp_path):
    _, config = finished
    config = copy.deepcopy(config)
    config.optim.decay_steps = 30
    config.train.validate_every = config.train.checkpoint_every = 5
    config.train.steps = 10
    train(config, tmp_path / "run")
    config.train.steps = 20
    train(config, tmp_path / "run")
    assert Workdir.open(tmp_path / "run").config.train.steps == 20
    train(config, tmp_path / "whole")
    assert_same(Workdir.open(tmp_path / "run").trained(), Workdir.open(tmp_path / "whole").trained())
    config.train.steps = 10
    assert "train.steps=20, not 10" in complaint(train, config, tmp_path / "run")


@pytest.mark.faults
def test_a_longer_training_takes_over_data_and_population(run, caplog):
    workdir, config = run
    config.train.steps = 30
    message = complaint(train, config, workdir)
    assert f"--config.data.path={workdir}" in message
    config.data.path = str(workdir)
    longer = workdir.with_name("longer")
    with caplog.at_level("INFO"):
        train(config, longer)
    assert "the population model of" in caplog.text
    before, after = Workdir.open(workdir), Workdir.open(longer)
    assert_same(before.trained("population"), after.trained("population"))
    np.testing.assert_array_equal(before.dataset.features, after.dataset.features)
    assert after.trained()[1] > 20 or after.unfinished() == []


@pytest.mark.faults
def test_reports_of_different_rows_never_replace_each_other(run, tmp_path):
    workdir, _ = run
    rows = tiny.rows(users=4, seed=3)
    names = ["a/people.jsonl", "b/people.jsonl", "c/.x.jsonl", "d/val.jsonl", "e/pe ople.jsonl"]
    where = []
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir()
        mine = [row | {"user_id": f"{i}-{row['user_id']}"} for row in rows]
        tiny.write_rows(path, mine)
        directory = report_directory(workdir, str(path))
        evaluate_workdir(workdir, str(path))
        assert report_directory(workdir, str(path)) == directory  # a second evaluation replaces its own report
        where.append(directory.name)
        assert json.loads((directory / "report.json").read_text())["source"] == str(path)
    assert where == ["report-people", "report-people-2", "report-x", "report-val-rows", "report-pe-ople"]


def test_the_report_of_a_relative_path_has_the_name_of_what_it_leads_to(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert report_directory(tmp_path, "..") == tmp_path / "report-a"


@pytest.mark.faults
def test_rates_that_change_with_the_number_of_steps_are_not_extended(finished, tmp_path):
    """A warm-up that is cut to the steps of the training would have other rates."""
    _, config = finished
    config = copy.deepcopy(config)
    config.optim.final_fraction, config.optim.warmup_steps, config.train.steps = 1.0, 100, 5
    train(config, tmp_path / "run")
    config.train.steps = 10
    assert "give another --workdir" in complaint(train, config, tmp_path / "run")


@pytest.mark.faults
def test_a_workdir_that_is_removed_says_so(finished, tmp_path, monkeypatch):
    _, config = finished
    workdir = tmp_path / "run"
    validate = HeldOut.scores

    def remove(*args):
        shutil.rmtree(workdir)
        return validate(*args)

    monkeypatch.setattr(HeldOut, "scores", remove)
    assert "was removed while it was in use" in complaint(train, copy.deepcopy(config), workdir)


def test_groups_of_people_have_a_population_model_of_their_own():
    one, other = (tiny.config("rows.jsonl") for _ in range(2))
    other.train.steps = 2 * one.train.steps
    assert _of_population(one) == _of_population(other)
    other.data.groups = ("long",)
    assert _of_population(one) != _of_population(other)


ODD = ["$$", "$x_$", "_a", "\x1b[31mred", "‮turned", "名前", "a\nb", "<b>bold</b>"]


@pytest.mark.faults
@pytest.mark.parametrize("groups", [ODD[:3], ODD[3:6], ODD[-2:]])
def test_people_and_groups_may_have_any_name(finished, tmp_path, groups):
    _, config = finished
    config = copy.deepcopy(config)
    records = [
        row
        | {
            "user_id": f"{ODD[int(row['user_id'][1:]) % 8]} {row['user_id']}",
            "group": groups[int(row["user_id"][1:]) % len(groups)],
        }
        for row in tiny.rows()
    ]
    config.data.path = str(tiny.write_rows(tmp_path / "rows.jsonl", records))
    config.train.steps = 5
    train(config, tmp_path / "run")
    evaluate_workdir(tmp_path / "run")
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "<b>bold" not in page
    assert ("&lt;b&gt;bold" in page) == ("<b>bold</b>" in groups)
