"""Imports point down only, and the pure layer needs neither Flax nor files nor configurations."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fssa_jax"
PURE = (
    "types",
    "ops.likelihoods",
    "ops.distributions",
    "ops.losses",
    "ops.neural_process",
    "ops.episodes",
    "ops.metrics",
)
# Lower layers first; a module may import from its own layer and those below.
LAYERS = [
    ["errors", "watchdog"],
    ["types"],
    [
        "ops._checks",
        "ops.neural_process",
        "ops.likelihoods",
        "ops.distributions",
        "ops.losses",
        "ops.episodes",
        "ops.metrics",
        "ops.factorise",
        "ops.adapters",
        "ops.cholesky",
        "ops.attention",
        "ops.logprobs",
        "ops.sampling",
        "ops.padding",
    ],
    [
        "config.reward",
        "files",
        "models",
        "lm.hf_config",
        "lm.hub",
        "lm.weight_map",
        "lm.safetensors",
        "lm.peft",
        "lm.tokenizer",
        "lm.text_encoder",
        "lm.engine",
        "lm.generate",
        "data",
        "train.checkpoint",
        "train.digests",
        "train.parallel",
        "report.plots",
        "evaluate.scores",
        "evaluate.controls",
        "report.html",
        "train.metrics_log",
        "data.new_people",
        "data.benchmarks.styles",
        "data.benchmarks.synthetic",
        "models.conditioner",
    ],
    ["train.step", "train.roles", "evaluate.predictor", "tasks.reward", "evaluate.evaluate", "evaluate.held_out"],
    [
        "experiment.train_reward",
        "train.loop",
        "experiment.workdir",
        "people.rank",
        "report.pictures",
        "report.example",
        "report.reward",
        "experiment.prepare",
        "lm.base",
        "lm.writer",
        "config.policy",
        "tasks.policy",
        "experiment.train_policy",
        "experiment.trained_policy",
        "experiment.policy_workdir",
        "experiment.warm_start",
        "evaluate.policy_scores",
        "evaluate.policy",
        "evaluate.written",
        "evaluate.in_context",
        "people.person",
        "people.side_by_side",
        "report.policy",
    ],
    ["program"],
]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(module: str) -> int | None:
    """Of fssa_jax.MODULE, the longest name of LAYERS that begins it."""
    parts = module.split(".")
    tried = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((i for name in tried for i, names in enumerate(LAYERS) if name in names), None)


def modules():
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = layer_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert own is not None, f"{path.name} is in no layer"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ("launch", "configs", "tests", "benchmarks"):
            pytest.fail(f"{path.name} imports {name}")
        if parts[0] == "fssa_jax" and len(parts) > 1:
            other = layer_of(".".join(parts[1:]))
            assert other is None or other <= own, f"{path.name} imports {name} from above"


@pytest.mark.parametrize("name", PURE)
def test_the_pure_layer_needs_only_jax(name):
    outside = {n.split(".")[0] for n in imports(PACKAGE / f"{name.replace('.', '/')}.py")} - {"fssa_jax"}
    assert outside <= {"jax", "jaxtyping", "typing", "dataclasses", "functools", "math"}


def test_the_package_init_is_reexports_only():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, importlib_, typing_, typed, names, module_of, public, late, listed = tree.body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(importlib_) == "import importlib"
    assert ast.unparse(typing_) == "from typing import TYPE_CHECKING, Any"
    assert isinstance(typed, ast.If)
    assert all(isinstance(node, ast.ImportFrom) for node in typed.body)
    assert all(isinstance(node, ast.Assign) for node in (names, module_of, public))
    assert isinstance(late, ast.FunctionDef)
    assert isinstance(listed, ast.FunctionDef)
    assert [late.name, listed.name] == ["__getattr__", "__dir__"]


def test_functions_on_arrays_come_without_the_programs():
    code = """
import sys
from fssa_jax import Hypernetwork, dpo_loss
print(sorted({"optax", "orbax", "tensorboardX", "transformers", "datasets", "fssa_jax.train.loop"} & {*sys.modules}))
from fssa_jax import Steerer, blended
print(Steerer.__name__, blended.__name__)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines() == ["[]", "Steerer blended"]


def test_programs_are_short():
    launch = PACKAGE.parent / "launch"
    assert {
        p.name: len(p.read_text().splitlines()) for p in launch.glob("*.py") if len(p.read_text().splitlines()) > 80
    } == {}


def test_every_package_is_installed():
    """`pip install .` brings all of them: what has no __init__.py, or another name, would be left out."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert settings["include"] == ["fssa_jax*"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
