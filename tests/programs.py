"""Runs the programs from outside, as `python -m launch.NAME` does, without importing everything anew each time."""

import importlib
import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags

ROOT = Path(__file__).parent.parent

# One process imports what the programs do, and every run is a fork of it that has computed nothing yet.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["fssa_jax.experiment.train", "fssa_jax.experiment.evaluate", "fssa_jax.experiment.prepare"]
)


@dataclass
class Done:
    """How a program ended and what it printed."""

    returncode: int | None
    stdout: str
    stderr: str


def _in_fork(name: str, arguments: list[str], out: str, package: str, run: bool) -> None:
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        stream.flush()
        os.dup2(os.open(f"{out}/{number}", os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"{package}/{name}.py", *arguments]
    if run:
        runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
        return
    importlib.import_module(f"{package}.{name}")
    if rest := flags.FLAGS(sys.argv)[1:]:
        raise ValueError(f"arguments that are no flags: {rest}")


def run(name: str, *arguments: object, timeout: float = 300, package: str = "launch") -> Done:
    """Runs launch.NAME, or that of another package, with these arguments to its end."""
    return _fork(name, arguments, timeout, package, run=True)


def parse(name: str, *arguments: str, package: str) -> Done:
    """Reads these arguments as the program does, its configuration file and overrides too, and ends."""
    return _fork(name, arguments, 60, package, run=False)


def _fork(name: str, arguments: Sequence[object], timeout: float, package: str, run: bool) -> Done:
    with tempfile.TemporaryDirectory() as out:
        process = _forks.Process(target=_in_fork, args=(name, list(map(str, arguments)), out, package, run))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        said = [(Path(out) / str(number)).read_text() for number in (1, 2)]
        return Done(process.exitcode, *said)


def assert_one_clear_line(done: Done, *words: str) -> None:
    """Exit status 2, and one line that says all the words."""
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]
