"""The choice among representations: made once, on validation people, kept by the work directory."""

import json
import shutil

import pytest

from fssa_jax.config import DiscretePrior, NormalPrior
from fssa_jax.config.experiment import read
from fssa_jax.experiment import choose as choosing
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.tasks.reward_models import resolve
from fssa_jax.train.checkpoint import Checkpoints
from tests import tiny
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("auto")
    config = tiny.auto_config(
        tiny.write_rows(directory / "rows.jsonl", tiny.rows(users=40)), patience=3, specialist_steps=0
    )
    config.train.steps = 400
    train(config, directory / "run")
    return directory / "run", config


def test_the_choice_is_that_of_the_lowest_nll_and_is_written_down(run):
    workdir, _ = run
    chosen = Workdir.open(workdir).run["chosen"]
    assert set(chosen["nll"]) == {"features", "kinds"}
    assert chosen["name"] == min(chosen["nll"], key=chosen["nll"].get)
    prior = read(workdir / "config.json").model.encoder.prior
    assert isinstance(prior, DiscretePrior if chosen["name"] == "kinds" else NormalPrior)
    assert not (workdir / "choice").exists()


def test_the_training_goes_on_from_the_fit_that_won_and_ends_by_itself(run):
    workdir, config = run
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] <= config.train.steps_per_call
    assert sorted(steps) == steps
    best, last = (
        Checkpoints(workdir / "checkpoints" / kind, 1, read_only=True).steps[-1] for kind in ("best", "latest")
    )
    assert last == min(best + 3 * config.train.validate_every, config.train.steps)
    assert Workdir.open(workdir).unfinished() == []


def test_the_same_command_changes_nothing(run, monkeypatch):
    workdir, config = run
    before = {path.name: path.read_bytes() for path in workdir.glob("*.json*")}
    monkeypatch.setattr(choosing, "fit", lambda *_: pytest.fail("fitted again"))
    train(config, workdir)
    assert {path.name: path.read_bytes() for path in workdir.glob("*.json*")} == before


def test_a_run_that_was_killed_while_it_chose_chooses_again(run, tmp_path):
    workdir, config = run
    shutil.copytree(workdir, tmp_path / "run")
    work = Workdir.open(tmp_path / "run")
    resolved = resolve(config, work.dataset, quiet=True)
    facts = {name: value for name, value in work.run.items() if name not in ("chosen", "crc32")}
    choosing.write_settings(work.path, resolved, facts)
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(work.path / name)
    for name in ("metrics.jsonl", "calibration.json"):
        (work.path / name).unlink()
    again = train(config, work.path)
    assert again.run["chosen"] == Workdir.open(workdir).run["chosen"]


def test_the_report_has_a_verdict_and_the_choice(run):
    workdir, _ = run
    report = evaluate_workdir(workdir)
    assert report["verdict"]["helps"] in ("yes", "not shown", "no")
    assert report["gain"]["0"]["mean"] == 0  # nobody has chosen anything: the population model
    assert report["run"]["chosen"]["name"]
    assert report["training"]["calibration"]["people"] > 0
    assert report["verdict"]["lines"][0] in (workdir / "report" / "report.html").read_text()


def test_known_texts_may_have_embeddings(run):
    workdir, config = run
    dataset = Workdir.open(workdir).dataset
    config.model.learn_texts = "yes"
    options = choosing.candidates(config, dataset)
    config.model.learn_texts = "no"
    assert list(options) == ["texts", "hybrid", "features", "kinds"]
    assert options["texts"].model.response == "none"
    assert options["texts"].objective.text_penalty == 0
    assert 0 < options["hybrid"].objective.text_penalty < options["features"].objective.text_penalty


def test_what_cannot_be_chosen_is_refused(tmp_path):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()))
    config.auto = "yes"
    assert "give config.auto=no" in complaint(train, config, tmp_path / "run")
