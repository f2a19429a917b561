"""Training: resume is bit-identical, also after kill -9; SIGTERM, damaged checkpoints, a full disk, NaN."""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax.config import to_json
from fssa_jax.errors import Stopped, UserError
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.evaluate.warnings import collapse_warnings
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.train import loop
from fssa_jax.train.checkpoint import Checkpoints
from fssa_jax.train.metrics_log import MetricsLog, last_step
from fssa_jax.train.profile import Steps
from fssa_jax.train.state import start_state
from tests import tiny

# Trains the configuration in argv[1] into argv[2], in a process that a test can kill.
_CHILD = """
import sys
from pathlib import Path
from fssa_jax.config.experiment import read
from fssa_jax.experiment.train import train
from fssa_jax.errors import Stopped, UserError
try:
    train(read(Path(sys.argv[1])), Path(sys.argv[2]))
except Stopped as stopped:
    print(stopped, file=sys.stderr)
except UserError as error:
    print(f"error: {error}", file=sys.stderr); sys.exit(2)
"""


def start(tmp_path, config, workdir, **popen):
    path = tmp_path / "child.json"
    path.write_text(to_json(config))
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), str(workdir)], stderr=subprocess.PIPE, text=True, **popen
    )


def checkpoint_steps(workdir):
    directory = workdir / "checkpoints" / "latest"
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.exists() else []


def wait_for_checkpoint(process, workdir, step):
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if any(s >= step for s in checkpoint_steps(workdir)):
            return
        time.sleep(0.02)
    pytest.fail(f"no checkpoint {step}: {process.communicate()[1]}")


def final_state(workdir):
    work = Workdir.open(workdir)
    trained = work.trained()
    assert trained is not None
    variables, _ = trained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return jax.tree.leaves(variables), losses


def assert_same_run(a, b):
    for x, y in zip(final_state(a)[0], final_state(b)[0], strict=True):
        np.testing.assert_array_equal(x, y)
    assert final_state(a)[1] == final_state(b)[1]


def test_a_run_leaves_everything_that_is_needed_later(finished):
    workdir = finished[0] / "run"
    assert (workdir / "run.json").exists()
    assert list((workdir / "tensorboard").iterdir())
    losses = final_state(workdir)[1]
    assert list(losses) == list(range(5, tiny.STEPS + 1, 5))
    assert checkpoint_steps(workdir) == [tiny.STEPS - 5, tiny.STEPS]  # keep = 2
    for name in ("population", "specialist"):
        assert (workdir / "baselines" / name / "checkpoints").is_dir()


def test_training_again_does_nothing(finished):
    workdir = finished[0] / "run"
    before = (workdir / "metrics.jsonl").read_bytes()
    train(finished[1], workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.faults
def test_kill_9_then_resume_equals_the_undisturbed_run_bit_for_bit(finished, tmp_path):
    directory, config = finished
    step = int(np.random.default_rng().integers(1, 4)) * 5  # fails at any step or not at all
    process = start(tmp_path, config, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run", step)
    process.kill()
    process.wait()
    train(config, tmp_path / "run")
    assert_same_run(directory / "run", tmp_path / "run")


@pytest.mark.faults
def test_sigterm_saves_and_exits_cleanly(finished, tmp_path):
    config = finished[1]
    long = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4000, checkpoint_every=2000))
    process = start(tmp_path, long, tmp_path / "run")
    deadline = time.time() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "run the same command to resume" in errors
    saved = checkpoint_steps(tmp_path / "run")
    assert saved
    assert saved[-1] % 5 == 0


def test_a_signal_during_a_validation_saves_too(finished, tmp_path, monkeypatch):
    config = dataclasses.replace(finished[1], train=dataclasses.replace(finished[1].train, checkpoint_every=20))
    scores = HeldOut.scores
    calls = []

    def interrupted(self, predictor):
        calls.append(1)
        if len(calls) == 2:  # the first is the population model's
            os.kill(os.getpid(), signal.SIGTERM)
        return scores(self, predictor)

    monkeypatch.setattr(HeldOut, "scores", interrupted)
    with pytest.raises(Stopped, match="stopped at step 10 of 20"):
        train(config, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run") == [10]


def damage(checkpoint: Path):
    files = [p for p in checkpoint.rglob("*") if p.is_file() and "/d/" in str(p)]
    assert files
    for file in files:
        file.write_bytes(b"damaged")


@pytest.mark.faults
def test_a_damaged_latest_checkpoint_falls_back_to_the_one_before_and_says_so(finished, tmp_path, caplog):
    directory, config = finished
    process = start(tmp_path, config, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run", 10)
    process.kill()
    process.wait()
    latest = checkpoint_steps(tmp_path / "run")[-1]
    damage(tmp_path / "run" / "checkpoints" / "latest" / str(latest))
    train(config, tmp_path / "run")
    assert f"checkpoint {latest} is damaged" in caplog.text
    assert_same_run(directory / "run", tmp_path / "run")


def test_a_damaged_metrics_file_ends_neither_training_nor_reading(finished, tmp_path, caplog):
    directory, config = finished
    shutil.copytree(directory / "run", tmp_path / "run")
    (file,) = (tmp_path / "run" / "checkpoints" / "best").glob("*/metrics.json")
    file.write_bytes(b"damaged")
    train(config, tmp_path / "run")
    assert f"{file}: damaged" in caplog.text
    assert_same_run(directory / "run", tmp_path / "run")


@pytest.mark.faults
def test_a_full_disk_leaves_the_last_good_checkpoint(finished, tmp_path):
    config = finished[1]
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4000, checkpoint_every=50))
    process = start(tmp_path, config, tmp_path / "run")
    wait_for_checkpoint(process, tmp_path / "run", 50)
    # From now on no file may grow: what a full disk does to every write.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in errors
    assert "cannot be written" in errors
    survivors = checkpoint_steps(tmp_path / "run")
    assert survivors
    work = Workdir.open(tmp_path / "run")
    assert work.trained()


def test_a_loss_that_is_not_finite_names_the_step_and_the_last_good_checkpoint(finished, tmp_path):
    config = tiny.config(finished[0] / "rows.jsonl", checkpoint_every=5)
    config.optim = dataclasses.replace(config.optim, learning_rate=1e30, clip_norm=1e30, warmup_steps=8)
    with pytest.raises(UserError, match=r"(loss|validation) is .*step \d+.*") as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_workdir_of_another_configuration_is_refused_by_name(finished):
    other = dataclasses.replace(finished[1], seed=1)
    with pytest.raises(UserError, match=r"config\.seed=0, not 1"):
        train(other, finished[0] / "run")


def test_an_unwritable_workdir_is_one_clear_error(finished, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        train(finished[1], tmp_path / "file" / "run")


def test_k_larger_than_any_context_is_refused_before_training(finished, tmp_path):
    config = tiny.config(finished[0] / "rows.jsonl")
    config.evaluate.k = (0, 500)
    with pytest.raises(UserError, match="500 is larger than any context"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_collapse_is_named():
    healthy = {"units": 8, "active_units": 8, "variance": 1.0, "kl": 2.0}
    assert collapse_warnings(healthy, 0.1) == []
    collapsed = collapse_warnings({**healthy, "active_units": 0, "kl": 0.006}, 1e-5)
    assert [w.split(":")[0] for w in collapsed] == ["latent collapse", "context ignored"]
    assert "0.006" in collapsed[0]


def test_too_large_a_kl_weight_collapses_the_posterior_and_is_reported(finished, tmp_path, caplog):
    """Fault 14 of the published code."""
    config = tiny.config(
        finished[0] / "rows.jsonl", steps=150, validate_every=50, checkpoint_every=150, specialist_steps=0
    )
    config.objective.kl_weight = 30.0
    train(config, tmp_path / "run")
    assert "latent collapse" in caplog.text


def test_a_best_of_a_later_step_does_not_count_after_falling_back(tmp_path, caplog):
    """Its score is that of parameters which training has left again."""
    optimizer = optax.sgd(0.1)
    state = dataclasses.replace(start_state({"params": {"w": jnp.ones(3)}}, optimizer), step=jnp.asarray(10))
    best, latest = (Checkpoints(tmp_path / "checkpoints" / name, 1) for name in ("best", "latest"))
    best.save(20, loop._parts(state), {"nll": -1.0})
    latest.save(10, loop._parts(state))

    @partial(jax.jit, static_argnums=(1, 2))
    def advance(state, step, number):
        losses = jnp.ones(number)
        return dataclasses.replace(state, step=state.step + number), {"loss": losses, "grad_norm": losses}

    run = loop.Run("main", 20, state, advance, lambda variables: ({"val/nll": 1.0}, []))
    with caplog.at_level("INFO"), loop.StopSignal() as stop:
        loop.run_to_end(run, tiny.config().train, tmp_path, stop)
    assert best.metrics(20) == {"nll": 1.0}
    assert "main: going on from step 10 of 20" in caplog.messages


def traced_calls(tmp_path, monkeypatch, steps, fails_at=None):
    """First steps of the calls that are traced, of 20 steps in calls of 5."""
    optimizer = optax.sgd(0.1)
    state = start_state({"params": {"w": jnp.ones(3)}}, optimizer)
    calls, running = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: running.append(directory))
    monkeypatch.setattr(jax.profiler, "stop_trace", running.clear)

    @partial(jax.jit, static_argnums=1)
    def advanced(state, number):
        losses = jnp.ones(number)
        return dataclasses.replace(state, step=state.step + number), {"loss": losses, "grad_norm": losses}

    def advance(state, step, number):
        if step == fails_at:
            raise TimeoutError("the device is gone")
        calls.extend([step] if running else [])
        return advanced(state, number)

    run = loop.Run("main", 20, state, advance, lambda variables: ({"val/nll": 1.0}, []))
    settings = dataclasses.replace(tiny.config().train, steps_per_call=5, validate_every=10, checkpoint_every=10)
    with loop.StopSignal() as stop, contextlib.suppress(TimeoutError):
        loop.run_to_end(run, settings, tmp_path, stop, steps)
    assert not running  # every trace is written
    return calls


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        (None, []),
        ((0, 5), [0]),
        ((5, 15), [5, 10]),
        ((7, 9), []),
        ((7, 15), [10]),
        ((15, 20), [15]),
        ((5, 99), [5, 10, 15]),
    ],
)
def test_the_calls_within_the_given_steps_are_traced(tmp_path, monkeypatch, caplog, steps, calls):
    assert traced_calls(tmp_path, monkeypatch, steps and Steps(*steps)) == calls
    assert ("nothing was traced" in caplog.text) == (steps == (7, 9))


def test_a_trace_is_written_also_if_the_training_fails(tmp_path, monkeypatch):
    assert traced_calls(tmp_path, monkeypatch, Steps(0, 20), fails_at=10) == [0, 5]


@pytest.mark.parametrize("line", ["[]", "3", "null", '"x"', '{"step": "x"}', "{}", '{"step": 3'])
def test_a_line_of_the_metrics_that_is_no_entry_is_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 5}}\n{line}\n')
    assert last_step(tmp_path) == 5
    log = MetricsLog(tmp_path, 5)
    log.write(10, {"loss": 0.5})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 10, "loss": 0.5}\n'


def test_stop_signal_restores_the_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with loop.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
    assert signal.getsignal(signal.SIGTERM) is before
