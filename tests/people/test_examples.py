"""The examples in the docstrings of what reads work directories run on a tiny reward model and a tiny policy."""

import doctest

import jax
import pytest

import fssa_jax
from fssa_jax.people.person import PersonModel, PersonPolicy


@pytest.mark.parametrize("kind", [PersonModel, PersonPolicy, fssa_jax.load], ids=["model", "policy", "load"])
def test_the_examples_run(kind, finished, steered, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished[0] / "run")
    (tmp_path / "runs" / "policy").symlink_to(steered)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    examples = 0
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        # The methods speak of what the class's own example made.
        found = doctest.DocTestFinder(exclude_empty=True).find(kind, "example", module=False, globs={})
        for test in sorted(found, key=lambda test: len(test.name)):
            test.globs = names
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(test, clear_globs=False).failed == 0, test.name
            examples += len(test.examples)
    assert examples
