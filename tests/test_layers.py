"""The rooms of the package: imports point down only, and the ground floor needs jax alone."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fssa_jax"
# Rooms from the ground up, and the floors of each: a module may import from lower floors of its own room, and from the
# rooms before.
ROOMS: dict[str, list[list[str]]] = {
    "": [["errors", "progress", "types"], ["files"]],
    "ops": [
        ["_checks", "_cholesky", "_products"],
        [
            "adapters",
            "attention",
            "choices",
            "distributions",
            "episodes",
            "factorise",
            "likelihoods",
            "logprobs",
            "metrics",
            "padding",
            "sampling",
        ],
        ["neural_process"],
        ["losses"],
    ],
    "models": [
        ["calibration", "context", "layers"],
        ["bayes_encoder", "bert", "decoder", "hypernetwork", "reward_heads", "set_encoder"],
        ["rewards"],
        ["conditioner", "ensemble"],
    ],
    "lm": [
        ["engine", "gguf", "gguf_tokenizer", "hf_config", "messages", "sentence_modules", "weight_map"],
        ["generate", "tensor_files", "tokenizer"],
        ["gguf_checkpoint", "peft", "safetensors"],
        ["hub"],
        ["texts", "token_table"],
        ["base", "packing", "text_encoder"],
        ["scoring"],
        ["writer"],
    ],
    "config": [
        ["fields"],
        ["data", "evaluate", "model", "objective", "train"],
        ["policy"],
        ["experiment"],
        ["reference"],
    ],
    "data": [
        [
            "benchmarks.simulated",
            "benchmarks.synthetic",
            "conversations",
            "embedding_store",
            "manner",
            "records",
            "splits",
            "thresholds",
        ],
        ["benchmarks.chat", "benchmarks.styles", "features", "rows"],
        ["quantities", "ratings", "schemas"],
        ["reading"],
        ["dataset"],
        ["featurise", "folds", "ranked", "summary", "tokenised"],
        ["row_dataset"],
        ["build", "new_people"],
    ],
    "train": [["digests", "metrics_log", "parallel", "profile", "state"], ["checkpoint", "step"], ["batches", "loop"]],
    "tasks": [
        ["predictor", "states"],
        ["policy_scorer", "pooled", "reference", "reward_predictor", "task"],
        ["reward_models"],
        ["reward", "sft"],
        ["policy_loss"],
        ["policy"],
    ],
    "evaluate": [
        [
            "attributes",
            "bayes",
            "best_of",
            "budget",
            "chance",
            "controls",
            "episodes",
            "in_context",
            "quality",
            "simulated_scores",
            "stacking",
            "verdict",
            "warnings",
        ],
        ["calibrate", "latent", "scores", "written"],
        ["evaluate", "held_out"],
    ],
    "people": [["blend", "choices"], ["ask", "person"], ["rank", "side_by_side"]],
    "report": [["example", "plots", "series"], ["html", "pictures", "tables"], ["written"]],
    "experiment": [
        ["folds", "pace", "prepare", "reports", "sample", "workdir"],
        ["cross_validate", "evaluate", "fit", "steering", "warm_start"],
        ["choose", "load", "resume"],
        ["make"],
        ["train"],
    ],
    "program": [["program"]],
}


def place_of(module: str) -> tuple[int, int] | None:
    """(room, floor) of fssa_jax.MODULE; None for the face of a room."""
    for number, (room, floors) in enumerate(ROOMS.items()):
        for floor, names in enumerate(floors):
            if module in (f"{room}.{name}" if room not in ("", "program") else name for name in names):
                return number, floor
    return None


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules():
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    own = place_of(module)
    assert own is not None, f"{module} is in no room"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ("launch", "configs", "tests", "benchmarks"):
            pytest.fail(f"{module} imports {name}")
        if parts[0] == "fssa_jax" and len(parts) > 1:
            other = place_of(".".join(parts[1:]))
            assert other is None or other < own, f"{module} imports {name}, which is not below it"


def test_every_room_is_a_folder_and_every_module_is_there():
    named = {
        f"{room}.{name}" if room not in ("", "program") else name
        for room, floors in ROOMS.items()
        for names in floors
        for name in names
    }
    assert named == {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in modules()}


@pytest.mark.parametrize("name", [name for names in ROOMS["ops"] for name in names])
def test_the_ground_floor_needs_only_jax(name):
    outside = {n.split(".")[0] for n in imports(PACKAGE / "ops" / f"{name}.py")} - {"fssa_jax"}
    assert outside <= {"jax", "jaxtyping", "numpy", "optax", "chex", *sys.stdlib_module_names}


def picture() -> str:
    """The rooms from the top down, each with the first line of its docstring and its modules floor by floor."""
    lines = ["    fssa_jax/"]
    for room, floors in reversed(ROOMS.items()):
        if room in ("", "program"):
            lines.append(f"      {' | '.join(' '.join(names) for names in reversed(floors))}")
            continue
        says = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert says, f"{room}/__init__.py says nothing"
        lines.append(f"      {room + '/':<12} {says.splitlines()[0]}")
        shown = " | ".join(" ".join(n for n in names if not n.startswith("_")) for names in reversed(floors))
        lines.append(f"          {shown}")
    return "\n".join(lines)


def test_the_picture_in_contributing_is_this_one():
    assert picture() in (PACKAGE.parent / "CONTRIBUTING.md").read_text(), f"CONTRIBUTING should have\n{picture()}"


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
from fssa_jax import PersonModel, blend
print(PersonModel.__name__, blend.__name__)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.splitlines() == ["[]", "PersonModel blend"]


def test_programs_are_short():
    launch = PACKAGE.parent / "launch"
    assert {
        p.name: len(p.read_text().splitlines()) for p in launch.glob("*.py") if len(p.read_text().splitlines()) > 90
    } == {}


def test_every_package_is_installed():
    """`pip install .` brings all of them: what has no __init__.py, or another name, would be left out."""
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert settings["include"] == ["fssa_jax*"]
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
