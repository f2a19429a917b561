"""The examples in the docstrings run and print what they say."""

import doctest
import importlib

import jax
import pytest


@pytest.mark.parametrize(
    "name", ["likelihoods", "distributions", "losses", "metrics", "models.encoder", "models.rewards"]
)
def test_docstring_examples(name):
    module = importlib.import_module(f"fssa_jax.{name}")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        finder = doctest.DocTestFinder(exclude_empty=True)
        for function in vars(module).values():
            target = getattr(function, "__wrapped__", function)
            if callable(target) and getattr(target, "__module__", "") == module.__name__:
                for test in finder.find(target, name=getattr(target, "__name__", ""), module=False, globs={}):
                    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
                    assert runner.run(test).failed == 0, test.name
