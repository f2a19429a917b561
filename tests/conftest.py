"""Strict JAX in every test, and the helpers that several files share."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path

# The tests, and the processes that they start, compile the same small programs again and again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

# What programs keep between runs is in a cache of the tests' own.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent.parent / ".pytest_cache" / "user")

# They are small: what compiling them well would save in running is far less than it costs.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock

from fssa_jax.data import featurise
from fssa_jax.experiment.train import train
from fssa_jax.types import Comparisons
from tests import tiny, tiny_policy

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


SUITES = {
    "faults": "kills, damage and full disks, in processes of their own",
    "devices": "several simulated devices, or several processes",
    "benchmarks": "the programs in benchmarks/, on small sizes",
    "fuzz": "thousands of damaged and odd files, checkpoints and configurations",
    "experiments": "whole experiments of the configurations, from the data to the report",
}
"""Suites that take long. Each has a flag and a marker of its name, and is skipped without the flag."""


def pytest_addoption(parser):
    for name, what in SUITES.items():
        parser.addoption(f"--{name}", action="store_true", help=f"also run {what}")


def pytest_configure(config):
    for name, what in SUITES.items():
        config.addinivalue_line("markers", f"{name}: {what}; run with --{name}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    for name in SUITES:
        if item.get_closest_marker(name) and not item.config.getoption(f"--{name}"):
            pytest.skip(f"a long suite: run with --{name}")


def make_comparisons(seed: int, shape: tuple[int, ...], d: int, k=None) -> Comparisons:
    """Random features (*shape, d); the first k of the last axis of `shape` are real."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.normal(size=(2, *shape, d)).astype(np.float32)
    k = shape[-1] if k is None else k
    mask = np.broadcast_to(np.arange(shape[-1]) < np.asarray(k)[..., None], shape)
    return Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), jnp.asarray(mask))


@pytest.fixture(scope="module", autouse=True)
def nothing_compiled_is_kept():
    """What a file of tests has compiled goes with it: thousands of programs would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def comparisons():
    return make_comparisons


@pytest.fixture(autouse=True)
def no_encoder_at_hand(monkeypatch):
    """Features "auto" are the same whether or not a sentence encoder happens to be installed."""
    monkeypatch.setattr(featurise, "at_hand", lambda name: False)


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """once(name, make): a directory that make(directory) fills, in the first process of the tests that asks for it.

    The others take it as it is, so nobody changes what is in it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def made(name: str, make) -> Path:
        directory, whole = root / f"once-{name}", root / f"once-{name}.whole"
        with FileLock(f"{directory}.lock"):
            if not whole.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                make(directory)
                whole.touch()
        return directory

    return made


@pytest.fixture(scope="session")
def finished(once):
    """(directory, configuration) of a run that nobody disturbed, in directory/run; its rows are beside it."""

    def make(directory: Path) -> None:
        train(tiny.config(tiny.write_rows(directory / "rows.jsonl", tiny.rows())), directory / "run")

    directory = once("finished", make)
    return directory, tiny.config(directory / "rows.jsonl")


@pytest.fixture(scope="session")
def tiny_base(once):
    """A directory with a random language model."""
    return once("base", lambda directory: tiny_policy.base(directory / "model")) / "model"


@pytest.fixture(scope="session")
def steered(finished, tiny_base, once):
    """The work directory of a policy that was trained on the people of `finished`, with its reward model's encoder."""
    people, _ = finished
    config = tiny_policy.config(people / "rows.jsonl", tiny_base, people / "run")
    return once("steered", lambda directory: train(config, directory / "run")) / "run"
