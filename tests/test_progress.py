"""Where a program waits is said, a second signal ends it, and the Newton encoder does not deadlock on a CPU."""

import inspect
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from fssa_jax import program, progress
from tests.programs import ROOT


def test_where_the_program_waits_is_said_once_a_while(caplog):
    with caplog.at_level(logging.WARNING), progress.watch(0.1):
        time.sleep(0.35)
    assert len(caplog.messages) == 2  # after .1 s and, doubled, .2 s
    assert "nothing has finished" in caplog.messages[0]
    assert "test_progress.py" in caplog.messages[0]  # nothing of the package is under way: the outermost place is ours


def test_what_finishes_in_time_is_not_mentioned(caplog):
    with caplog.at_level(logging.WARNING), progress.watch(0.3):
        for _ in range(8):
            time.sleep(0.1)
            progress.finished()
    assert caplog.messages == []


def test_the_place_is_a_line_of_this_package(caplog, monkeypatch, tmp_path):
    from fssa_jax import files

    monkeypatch.setattr(files.os, "replace", lambda *_: time.sleep(0.15))
    with caplog.at_level(logging.WARNING), progress.watch(0.1):
        files.write_text(tmp_path / "x", "y")
    # Two functions are under way in files.py, write_text and what it calls: the innermost is named.
    assert re.search(r"the program waits in fssa_jax/files\.py:\d+ \(_write\)", caplog.messages[0])


def test_a_log_gets_lines_about_the_work_and_what_is_left(caplog):
    """Off a terminal: after a first wait, then regularly, whether or not a unit is done."""
    with caplog.at_level(logging.INFO), progress.watch(60, first=0.1, again=0.2):
        with progress.doing("embedding", 1000, "texts", initial=200) as work:
            time.sleep(0.2)
            work.add(100)
            work.note("loss 0.5")
            time.sleep(0.3)
        time.sleep(0.25)
    lines = caplog.messages
    assert lines[0].startswith("embedding: started 0 s ago (compiling, or the first texts)")
    assert any("embedding: 300 of 1000 texts, " in line and " s left, loss 0.5" in line for line in lines)
    assert lines[-1].startswith("at work in ")


def test_the_innermost_work_is_shown(caplog):
    with caplog.at_level(logging.INFO), progress.watch(60, first=0.05, again=0.1), progress.doing("main", 10):
        for _ in progress.each(range(3), "validation", "batches"):
            time.sleep(0.1)
    assert any(line.startswith("validation: ") and " of 3 batches" in line for line in caplog.messages)
    assert progress._work == []


def test_programs_set_the_flag_of_xla_and_keep_what_the_user_set(monkeypatch):
    flag = "--xla_cpu_enable_concurrency_optimized_scheduler"
    monkeypatch.setattr(program, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    program.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/x {flag}=false"
    monkeypatch.setenv("XLA_FLAGS", f"{flag}=true")
    program.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == f"{flag}=true"
    monkeypatch.setattr(program, "version", lambda name: "0.11.2")
    monkeypatch.delenv("XLA_FLAGS")
    program.set_xla_flags()
    assert "XLA_FLAGS" not in os.environ


def test_programs_set_the_flags_of_a_gpu_where_its_plugin_is_installed(monkeypatch):
    monkeypatch.setattr(program, "version", lambda name: "0.11.2")
    monkeypatch.setattr(program, "find_spec", lambda name: name == "jax_cuda13_plugin" or None)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    program.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_triton_gemm=true --xla_gpu_dot_merger_threshold_mb=0"


@pytest.fixture
def run_here(monkeypatch):
    """Runs a function as a program in this process, whose log stays as it is."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # a program changes it
    monkeypatch.setattr(program.app, "run", lambda guarded, flags_parser: guarded(["program"]))
    monkeypatch.setattr(program, "_quiet_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)
    return lambda main: program.run(main, "")


def test_programs_have_the_flag_of_xla(monkeypatch, run_here):
    monkeypatch.setattr(program, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    seen = []
    run_here(lambda: seen.append(os.environ["XLA_FLAGS"]))
    assert seen == ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]


def test_programs_say_what_they_do(run_here):
    running = []
    run_here(lambda: running.extend(thread.name for thread in threading.enumerate()))
    assert "progress" in running
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_a_log_has_a_line_after_five_seconds_and_every_fifteen():
    defaults = inspect.signature(progress.watch).parameters
    assert (defaults["first"].default, defaults["again"].default) == (5, 15)


HANGS = """
    import time
    from fssa_jax.train.loop import StopSignal
    with StopSignal():
        print("ready", flush=True)
        for _ in range(600):
            time.sleep(0.1)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_a_program_that_hangs(name):
    import signal

    number = getattr(signal, name)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HANGS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(number)
    time.sleep(0.5)
    assert child.poll() is None  # the first is kept for the loop
    child.send_signal(number)
    assert child.wait(10) == -number
    assert child.stderr is not None
    assert b"a second signal ends the process at once" in child.stderr.read()
    child.stdout.close()
    child.stderr.close()


# 300 people, as validation reads them: a solve and a variance of (256, 65, 65) for one k after the other.
VALIDATION = """
    import jax, jax.numpy as jnp, numpy as np
    from fssa_jax import BayesEncoder, RewardModel
    from fssa_jax.evaluate.episodes import evaluation_episodes
    from fssa_jax.tasks.reward_predictor import reward_predictor
    from fssa_jax.types import ChoiceTable

    rng = np.random.default_rng(0)
    texts, people, rows = 100, 300, 25
    table = ChoiceTable(*jnp.asarray(rng.integers(0, texts, (2, people, 2, rows)), jnp.int32),
                        count=jnp.full((people, 2), rows), group=jnp.zeros(people, jnp.int32))
    encoder = BayesEncoder(observations=("responses",), rounds=3)
    model = RewardModel(encoder=encoder, target="none", width=64, head="bilinear", population="linear",
                        learnt_texts=texts)
    features = jnp.asarray(rng.normal(size=(texts, 8)), jnp.float32)
    ks = (0, 1, 3, 5, 10)
    episodes = evaluation_episodes(0, 0, table, jnp.arange(people), max_context=max(ks))
    variables = model.init(jax.random.key(0), episodes, features)
    found = reward_predictor(model, features, 1)(variables).predict(episodes, ks)
    print(found.log_p.shape, bool(np.isfinite(found.log_p).all() and np.isfinite(found.kl()).all()))
"""


@pytest.mark.faults
def test_validation_of_300_people_ends_on_busy_cores():
    """It never did with JAX 0.10 and the concurrent scheduler, which Python programs of users have on."""
    flags = os.environ["XLA_FLAGS"]
    if program.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_enable_concurrency_optimized_scheduler=true"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(VALIDATION)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=180,
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.stdout == "(5, 300, 25) True\n", done.stderr
