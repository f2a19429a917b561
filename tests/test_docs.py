"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import subprocess
from pathlib import Path

import jax
import pytest


@pytest.mark.parametrize(
    "name",
    [
        "ops.likelihoods",
        "ops.distributions",
        "ops.losses",
        "ops.metrics",
        "ops.episodes",
        "models.encoder",
        "models.rewards",
        "ops.adapters",
        "ops.attention",
        "ops.logprobs",
        "ops.sampling",
        "ops.padding",
        "evaluate.controls",
        "evaluate.written",
        "models.bert",
        "models.decoder",
        "models.layers",
        "lm.engine",
        "lm.weight_map",
        "models.hypernetwork",
    ],
)
def test_docstring_examples(name):
    module = importlib.import_module(f"fssa_jax.{name}")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        finder = doctest.DocTestFinder(exclude_empty=True)
        examples = 0
        for function in vars(module).values():
            target = getattr(function, "__wrapped__", function)
            if callable(target) and getattr(target, "__module__", "") == module.__name__:
                for test in finder.find(target, name=getattr(target, "__name__", ""), module=False, globs={}):
                    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
                    assert runner.run(test).failed == 0, test.name
                    examples += len(test.examples)
    assert examples


def test_the_example_of_the_readme():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = [part.split("```", 1)[0] for part in text.split("```python\n")[1:]]
    code = next(block for block in blocks if "neural_process_loss" in block)  # the other one needs a download
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names: dict = {}
        exec(compile(code, "README.md", "exec"), names)
    assert names["log_p"].shape == (8, 20)
    assert names["q"].mean.shape == (8, 16)
    assert 0 < names["loss"] < 5


def test_the_quickstart_is_shell_and_what_it_runs_is_python():
    script = Path(__file__).parent.parent / "launch" / "quickstart.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    parts = [part.split("\n'")[0] for part in script.read_text().split("-c '")[1:]]
    assert parts
    for part in parts:
        assert compile(part, "quickstart.sh", "exec")
