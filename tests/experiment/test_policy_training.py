"""Training of policies: what is written, stopped runs go on, and faults are named with the people behind them."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.config import NewEncoder, NoEncoder
from fssa_jax.errors import Stopped
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.fit import validation
from fssa_jax.experiment.make import make
from fssa_jax.experiment.train import fit, train
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.tasks.policy import TEACHER
from fssa_jax.train.loop import StopSignal
from tests import tiny_policy
from tests.mistakes import complaint
from tests.policy_steps import rows_of, with_adapter, with_encoder
from tests.tiny_policy import change
from tests.trees import assert_same


@pytest.fixture(scope="module")
def made(steered):
    """The work directory of a policy that has been trained."""
    return Workdir.open(steered)


def test_everything_that_is_needed_later_is_there(steered, made):
    for name in ("config.json", "run.json", "reference.npz", "metrics.jsonl", "data/tokens.npz"):
        assert (steered / name).is_file(), name
    lines = [json.loads(line) for line in (steered / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    trained = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")
    assert {*trained, "loss/preference", "loss/sft", "grad_norm", "learning_rate"} <= names
    fields = ("accuracies", "margins", "chosen", "rejected")
    expected = {f"val/rewards/{field}_k{k}" for field in fields for k in (0, 1, 3)} | {"val/nll", "val/logps/chosen_k3"}
    assert expected <= names
    last = next(line for line in reversed(lines) if "val/nll" in line)
    margin = last["val/rewards/chosen_k3"] - last["val/rewards/rejected_k3"]
    np.testing.assert_allclose(margin, last["val/rewards/margins_k3"], atol=1e-5)
    assert made.task.names == ("population", "main", "specialist")
    assert all(made.trained(name) for name in made.task.names)


def test_the_same_command_again_does_nothing(steered, finished, tiny_base):
    directory, _ = finished
    before = (steered / "metrics.jsonl").read_bytes()
    train(tiny_policy.config(directory / "rows.jsonl", tiny_base, directory / "run"), steered)
    assert (steered / "metrics.jsonl").read_bytes() == before


@pytest.mark.experiments
def test_a_policy_for_everybody_is_trained_and_says_the_same_whatever_was_chosen(finished, tiny_base, tmp_path):
    config = tiny_policy.config(finished[0] / "rows.jsonl", tiny_base)
    config.encoder, config.evaluate.in_context_users = NoEncoder(), 0
    train(config, tmp_path / "run")
    report = evaluate_workdir(tmp_path / "run")
    assert len({cell["mean"] for cell in report["accuracy"].values()}) == 1
    assert report["population"] == report["accuracy"]
    assert "latent" not in report
    assert not report.get("control")
    assert list(report["generation"]["policy"]) == ["3"]
    assert "blend" not in report["generation"]
    assert np.isfinite(report["generation"]["policy"]["3"]["kl"])


def test_stopped_and_resumed_is_the_undisturbed_run_bit_for_bit(made, tmp_path):
    again = make(made.config, tmp_path / "again")
    trained = {TEACHER: teacher_variables(made.config)}
    stop = StopSignal()
    stop.received = True
    with pytest.raises(Stopped, match="stopped at step 2 of 4"):
        fit(again, "main", trained, stop)
    stop.received = False
    fit(again, "main", trained, stop)
    assert_same(again.trained(), made.trained())


@pytest.mark.faults
def test_a_trained_encoder_and_the_noise_of_its_latent_resume_bit_for_bit_too(made, tmp_path):
    config = with_adapter(with_encoder(made.config, NewEncoder, kl_weight=0.1), "lora", places=("query",))
    config.optim.average_decay = 0.9
    assert config.encoder.model.encoder.gaussian
    stop, found = StopSignal(), []
    made = make(config, tmp_path / "whole")
    for name in ("whole", "stopped"):
        work = dataclasses.replace(made, path=tmp_path / name)
        stop.received = name == "stopped"
        if stop.received:
            with pytest.raises(Stopped, match="stopped at step 2 of 4"):
                fit(work, "main", {}, stop)
        stop.received = False
        fit(work, "main", {}, stop)
        found.append(work.trained())
    assert_same(*found)


def test_a_loss_that_is_not_finite_names_the_step_and_the_people(made, tmp_path):
    work = make(made.config, tmp_path / "run")
    spoilt = dataclasses.replace(
        work.task.base, variables=jax.tree.map(lambda x: x * jnp.nan, work.task.base.variables)
    )
    work = dataclasses.replace(work, task=dataclasses.replace(work.task, base=spoilt))
    message = complaint(fit, work, "main", {}, StopSignal())
    assert message.startswith("main: the loss is nan at step 1 (people u")
    assert "there is no checkpoint yet" in message


def test_a_loss_that_one_text_spoils_names_the_step_that_reads_it_and_its_people(made, tmp_path):
    """Not the first step of a call: a text whose reference is no number, which the first batch does not read."""
    work = make(made.config, tmp_path / "run")
    task, tables = work.task, work.task.tables("train")
    batches = [rows_of(task, jnp.int32(step), tables) for step in (0, 1)]
    first, second = (set(np.asarray(task.texts(rows)).ravel().tolist()) for rows in batches)
    reference = task.reference.copy()
    reference[sorted(second - first)] = np.nan
    work = dataclasses.replace(work, task=dataclasses.replace(task, reference=reference))
    message = complaint(fit, work, "main", {}, StopSignal())
    assert message.startswith("main: the loss is nan at step 2 (people u")
    everybody = work.dataset.splits["train"].users
    people = {everybody[int(u)] for u in np.asarray(batches[1].episode.user)}
    assert set(message.split("(people ")[1].split(")")[0].split(", ")) == people


def test_what_is_to_be_written_must_fit_into_the_base(finished, tiny_base, tmp_path):
    people, _ = finished
    config = tiny_policy.config(people / "rows.jsonl", tiny_base, people / "run")
    config.evaluate.generate.max_new = 256
    message = complaint(make, config, tmp_path / "run")
    assert message.startswith("config.evaluate.generate.max_new: 256 tokens and a prompt do not fit into the 256 ")
    make(change(config, {"evaluate.generate.people": 0}), tmp_path / "run")  # nothing is written


def test_the_size_of_a_validation_is_a_setting_and_is_said(steered, caplog):
    task = Workdir.open(steered).task
    assert task.config.evaluate.k == (0, 1, 3)
    train = dataclasses.replace(task.config.train, validation_users=2, validation_targets=1)
    small = dataclasses.replace(task, config=dataclasses.replace(task.config, train=train))
    with caplog.at_level(logging.INFO):
        scores, _ = validation(small, "main")(small.start("main", {}))
        validation(small, "population")
    assert "main: each validation scores 12 sequences" in caplog.text  # 2 people × 1 choice × 2 responses × 3 k
    assert "population: each validation scores 4 sequences" in caplog.text
    assert np.isfinite(scores["val/nll"])
