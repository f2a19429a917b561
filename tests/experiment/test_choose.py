"""The choice among representations: made once, on validation people, kept by the work directory."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import fssa_jax
from fssa_jax.config import DiscretePrior, NormalPrior
from fssa_jax.config.experiment import read
from fssa_jax.data.thresholds import rating_threshold
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.evaluate.stacking import mixed
from fssa_jax.experiment import choose as choosing
from fssa_jax.experiment.cross_validate import cross_validate
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.folds import FoldFits, Folds
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import with_checksum, without_checksum
from fssa_jax.models.ensemble import separate
from fssa_jax.train.loop import StopSignal
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
    assert set(chosen["nll"]) == {"features", "features × 10", "kinds", "kinds × 10"}
    first, *others = chosen["shares"]
    assert chosen["name"] == " + ".join([first, *others])
    if not others:
        assert first == min(chosen["nll"], key=chosen["nll"].get)
    config = read(workdir / "config.json")
    assert isinstance(config.model.encoder.prior, DiscretePrior if "kinds" in first else NormalPrior)
    assert [part.weight for part in config.model.parts] == (list(chosen["shares"].values()) if others else [])
    choices = int(np.asarray(Workdir.open(workdir).dataset.splits["train"].table.count).sum())
    strength = float(min(chosen["population"], key=chosen["population"].get))
    assert config.objective.population_penalty == pytest.approx(strength / choices, rel=1e-2)


@pytest.mark.parametrize(
    ("known", "lowest"),
    [("yes", (10, 6.4)), ("yes", (3.16, 3.2)), ("yes", (2e4, 0.01)), ("no", (10, 1.6)), ("no", (3e-4, 1.6))],
)
def test_penalties_of_the_population_are_searched_for(run, monkeypatch, known, lowest):
    """By an NLL that is lowest inside the grid, between its values, or outside of it."""
    work = Workdir.open(run[0])
    work.config.model.learn_texts = known
    choices = int(np.asarray(work.dataset.splits["train"].table.count).sum())

    def nll(config, held_out):
        penalties = config.objective.population_penalty, config.objective.text_bias_penalty
        return sum(abs(np.log(p * choices / best)) for p, best in zip(penalties, lowest, strict=True))

    monkeypatch.setattr(choosing, "_nll", nll)
    monkeypatch.setattr(choosing.HeldOut, "of", lambda *_, **__: SimpleNamespace(log_p=lambda config: config))
    fits = SimpleNamespace(
        folds=SimpleNamespace(people=None),
        population=lambda config: config,
        predictor=lambda config, name, fitted: fitted,
    )
    config, scores = choosing._with_population(work, fits)
    assert len(scores) < 25
    penalties = np.array([config.objective.population_penalty, config.objective.text_bias_penalty]) * choices
    steps = np.log([10**0.5, 2])  # the half-way ones are these factors apart
    assert (np.abs(np.log(penalties / np.array(lowest))) < 0.51 * steps + 0.01).all()


def test_few_people_decide_in_folds_and_the_number_of_steps_too(run):
    workdir, _ = run
    work = Workdir.open(workdir)
    chosen = work.run["chosen"]
    assert (chosen["folds"], chosen["people"]) == (4, 36)  # all but four test people
    assert work.config.train.steps == chosen["steps"] == work.best_step("main")
    assert work.training()["decided"]
    assert work.unfinished() == []
    assert work.calibration().people == 36


def test_the_same_command_changes_nothing(run, monkeypatch):
    workdir, config = run
    before = {path.name: path.read_bytes() for path in workdir.glob("*.json*")}
    monkeypatch.setattr(FoldFits, "_fit", lambda *_: pytest.fail("fitted again"))
    train(config, workdir)
    assert {path.name: path.read_bytes() for path in workdir.glob("*.json*")} == before


def test_a_run_that_was_killed_before_it_trained_decides_alike(run, tmp_path):
    workdir, config = run
    again = train(config, tmp_path / "run")
    assert again.run["chosen"] == Workdir.open(workdir).run["chosen"]
    np.testing.assert_equal(again.calibration().as_json(), Workdir.open(workdir).calibration().as_json())


def test_a_calibration_that_is_missing_or_of_another_step_is_said_and_not_used(run, tmp_path, caplog):
    workdir, config = run
    copied = shutil.copytree(workdir, tmp_path / "run")
    assert "calibration" in Workdir.open(copied).trained()[0]
    values = without_checksum(json.loads((copied / "calibration.json").read_text()))
    (copied / "calibration.json").write_text(json.dumps(with_checksum(values | {"step": values["step"] + 25})))
    assert "calibration" not in Workdir.open(copied).trained()[0]
    (copied / "calibration.json").unlink()
    fssa_jax.load(copied)
    assert "main model: not calibrated, so nothing guards against a loss; run launch.train again" in caplog.text
    train(config, copied)
    assert Workdir.open(copied).unfinished() == []
    assert "calibration" in Workdir.open(copied).trained()[0]


def test_a_closed_guard_is_said_wherever_the_model_is_used(run, tmp_path, caplog):
    copied = shutil.copytree(run[0], tmp_path / "run")
    values = without_checksum(json.loads((copied / "calibration.json").read_text()))
    (copied / "calibration.json").write_text(json.dumps(with_checksum(values | {"gain": -1.0})))
    fssa_jax.load(copied)
    assert "so everybody gets the population model" in caplog.text


def test_everybody_is_scored_once_in_folds(run):
    workdir, _ = run
    report = cross_validate(workdir, 3)
    assert report["users"]["scored"] == 40
    assert report["gain"]["3"]["low"] > 0.1  # two kinds of people who want the opposite
    assert report["control_gain"]["3"]["mean"] < report["gain"]["3"]["mean"]
    assert report["training"]["calibration"]["helps"]
    assert len(report["training"]["calibration"]["folds"]) == 3
    assert report["targets"]["unseen"] == report["targets"]["rows"]  # nobody's texts were in the training of their fold
    curve = report["learning_curve"]
    assert curve["people"] == [7, 14, 27]
    assert curve["gain"][-1] == report["gain"]["3"]
    assert any("instead of 14" in line for line in report["verdict"]["lines"])
    assert json.loads((workdir / "report-folds" / "report.json").read_text())["folds"] == 3
    message = complaint(cross_validate, workdir, 41)
    assert message == "--folds=41: there are only 40 people; give at most as many folds as people"


def test_the_report_has_a_verdict_and_the_choice(run):
    workdir, _ = run
    report = evaluate_workdir(workdir)
    assert report["verdict"]["helps"] in ("yes", "not shown", "no")
    if not float(Workdir.open(workdir).calibration().calibration.shrinkage_without):
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
    assert list(options) == ["texts", "hybrid", "hybrid × 10", "features", "features × 10", "kinds", "kinds × 10"]
    levels = dataclasses.replace(
        dataset, texts=[*dataset.texts[:-2], rating_threshold(2.0).text, rating_threshold(3.0).text]
    )
    config.model.learn_texts = "yes"
    assert levels.thresholds.sum() == 2
    assert list(choosing.candidates(config, levels))[:2] == ["ids", "hybrid"]  # likes would lose the level
    config.model.learn_texts = "no"
    assert options["texts"].model.response == "none"
    assert options["texts"].objective.text_penalty == 0
    assert 0 < options["hybrid"].objective.text_penalty < options["features"].objective.text_penalty


def test_what_cannot_be_chosen_is_refused(tmp_path):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows()))
    config.auto = "yes"
    assert "give config.auto=no" in complaint(train, config, tmp_path / "run")


def test_a_fit_that_diverged_is_never_chosen(caplog):
    """NaN would win or lose by the order of the candidates."""
    held_out = SimpleNamespace(weight=np.full((3, 2), 0.5))
    assert choosing._nll(np.full((1, 3, 2), np.nan), held_out) > 1e38
    assert "diverged" in caplog.text
    found = {
        "diverged": choosing._Found(1e38, 50, np.full((1, 3, 2), np.nan)),
        "right": choosing._Found(0.5, 50, np.full((1, 3, 2), -0.5)),
    }
    assert choosing._shares(found, held_out.weight) == {"right": 1.0}


def found_of(log_p):
    return {name: choosing._Found(-values.mean(), 50, values) for name, values in log_p.items()}


def test_candidates_that_are_right_for_different_people_are_averaged():
    """Two models, each sure of half of the people's choices, and one that is worse than either."""
    right, wrong = np.log(0.9), np.log(0.3)
    people = np.arange(40)[None, :, None] % 2 + np.zeros((2, 40, 3))
    first, second = np.where(people == 0, right, wrong), np.where(people == 1, right, wrong)
    found = found_of({"first": first, "second": second + 1e-3, "bad": np.full((2, 40, 3), np.log(0.2))})
    shares = choosing._shares(found, np.full((40, 3), 1 / 3))
    assert list(shares) == ["second", "first"]
    np.testing.assert_allclose(list(shares.values()), [0.5, 0.5], atol=0.02)


def test_without_a_clear_gain_the_best_candidate_is_trained_alone():
    rng = np.random.default_rng(0)
    first = np.log(rng.uniform(0.4, 0.8, (2, 9, 3)))
    weight = np.full((9, 3), 1 / 3)
    same = found_of({"first": first, "second": first - 1e-4})
    assert choosing._shares(same, weight) == {"first": 1.0}
    one_person = found_of({"first": first[:, :1], "second": first[:, :1, ::-1]})
    assert choosing._shares(one_person, weight[:1]) in ({"first": 1.0}, {"second": 1.0})
    # Only one of nine people gains from the second, which is within one standard error of nothing.
    other = first - 1e-3
    other[:, 0] = 0
    assert choosing._shares(found_of({"first": first, "second": other}), weight) == {"second": 1.0}


def test_the_models_of_an_average_are_those_that_were_fitted_alone(run, monkeypatch):
    """Nothing is trained again to decide the number of steps, or to calibrate the average."""
    workdir, _ = run
    work = Workdir.open(workdir)
    config = work.config
    config.model.parts, config.model.encoder.prior = (), NormalPrior(3)
    options = choosing.candidates(config, work.dataset)
    averaged = choosing._averaged(options, {"kinds × 10": 0.6, "features": 0.4})
    assert [part.weight for part in averaged.model.parts] == [0.6, 0.4]
    with StopSignal() as stop:
        fits = FoldFits(Folds.for_decisions(work.dataset, 0), stop, population_steps=25)
        alone = [fits.main(options[name], 25) for name in ("kinds × 10", "features")]
        later = fits.main(options["features"], 50)
        monkeypatch.setattr(FoldFits, "_program", lambda *_: pytest.fail("trained again"))
        together = fits.main(averaged, 25)
    assert len(together) == len(alone[0]) == 4
    for fold, both in enumerate(together):
        for got, of_one in zip(separate(both), alone, strict=True):
            jax.tree.map(np.testing.assert_array_equal, got, of_one[fold])
    kernel = alone[1][0]["params"]["target_encoder"]["dense_0"]["kernel"]
    assert not np.allclose(later[0]["params"]["target_encoder"]["dense_0"]["kernel"], kernel)
    predicted = fits.predictor(averaged, "main", together)
    held_out = HeldOut.of(fits.folds.people, (0, 3), reads=True, users=8)
    names = ("kinds × 10", "features")
    each = [held_out.log_p(fits.predictor(options[n], "main", one)) for n, one in zip(names, alone, strict=True)]
    got = held_out.log_p(predicted)
    expected = mixed(np.stack(each), np.array([0.6, 0.4]))
    real = np.broadcast_to(held_out.weight > 0, got.shape)
    np.testing.assert_allclose(got[real], expected[real], atol=0.02)
