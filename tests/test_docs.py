"""What the documents say is so: examples run, commands are accepted, settings, files and links are there."""

import doctest
import importlib
import json
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from fssa_jax.config import LoraCore
from fssa_jax.config.experiment import KINDS
from fssa_jax.data.reading import read_rows
from fssa_jax.experiment.train import train
from tests import documents, tiny, tiny_policy
from tests.documents import FILES, ROOT
from tests.programs import parse

LANGUAGES = {"python", "bash", "json", "text"}
# Commands of blocks that belong to others; ours are parsed.
OTHERS = {"pip", "source", "git"}


@pytest.mark.parametrize(
    "name",
    [
        "ops.likelihoods",
        "ops.distributions",
        "ops.losses",
        "ops.neural_process",
        "ops.metrics",
        "ops.episodes",
        "models.bayes_encoder",
        "models.calibration",
        "models.context",
        "models.set_encoder",
        "models.rewards",
        "ops.adapters",
        "ops._cholesky",
        "ops.attention",
        "ops.logprobs",
        "ops.sampling",
        "ops.padding",
        "evaluate.budget",
        "evaluate.controls",
        "evaluate.verdict",
        "evaluate.written",
        "models.bert",
        "models.decoder",
        "models.layers",
        "lm.engine",
        "lm.weight_map",
        "models.hypernetwork",
        "ops.factorise",
        "data.benchmarks.chat",
        "data.benchmarks.simulated",
        "data.benchmarks.styles",
        "data.manner",
        "data.ranked",
        "people.ask",
        "people.blend",
        "errors",
        "types",
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


@pytest.fixture
def place(finished, tiny_base, once, tmp_path, monkeypatch):
    """The directory in which the examples run: the files and the work directories that they name."""
    people, _ = finished

    def make(directory: Path) -> None:
        config = tiny_policy.config(people / "rows.jsonl", tiny_base, people / "run")
        config.policy.adapter = LoraCore(core="full", places=("query", "value"))
        train(config, directory / "run")

    for name, target in (
        ("mine", people / "run"),
        ("policy", once("low_rank_policy", make) / "run"),
        ("base/model", tiny_base),
    ):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).symlink_to(target)
    shutil.copy(people / "rows.jsonl", tmp_path)
    rows = [[row for row in tiny.rows() if row["user_id"] == f"u{user}"][:3] for user in (0, 1)]
    for name, mine in zip(("anna", "bob"), rows, strict=True):
        tiny.write_rows(tmp_path / f"{name}.jsonl", mine)
    responses = [
        {"prompt": row["prompt"], "response": row[side]} for row in rows[0] for side in ("response_a", "response_b")
    ]
    tiny.write_rows(tmp_path / "candidates.jsonl", responses)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", [file for file in FILES if documents.blocks(file, "python")])
def test_the_python_of_a_document_runs(file, place):
    """All blocks of a file in order, in one namespace; those that need a download are compiled only."""
    names: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in documents.blocks(file, "python"):
            code = compile("\n" * (block.line - 1) + block.text, file, "exec")
            if "no-run" not in block.words:
                exec(code, names)
    if file == "README.md":
        assert len(names["rewards"]) == len(names["texts"]) == 2
    if file == "docs/policies.md":
        assert len(names["rewards"]) == len(names["for_both"]) == len(names["people"].mean) == 2
        assert (place / "adapters" / "anna" / "adapter_model.safetensors").is_file()
    if file == "docs/library.md":
        assert (names["log_p"].shape, names["q"].mean.shape) == ((8, 20), (8, 16))
        assert 0 < names["loss"] < 5


@pytest.mark.parametrize("file", FILES)
def test_every_block_says_its_language(file):
    for block in documents.blocks(file):
        assert block.language in LANGUAGES, f"{file}:{block.line}"
        assert set(block.words) <= {"no-run"}, f"{file}:{block.line}"


@pytest.mark.parametrize("file", FILES)
def test_the_commands_of_a_document_are_accepted(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in documents.commands(file):
        program, *arguments = words
        said = " ".join(words)
        if program.startswith("launch/"):
            assert (ROOT / program).stat().st_mode & 0o100, said
            paths = [argument for argument in arguments if argument.endswith(".py")]
        elif program.endswith("python") and arguments[:2] == ["-m", "pytest"]:
            paths = [argument.split("::")[0] for argument in arguments[2:] if ".py" in argument]
        elif program.startswith("python") and arguments[:1] == ["-c"]:
            paths = compile(arguments[1], file, "exec") and []
        elif program == "python":
            assert arguments[0] == "-m", said
            package, _, name = arguments[1].rpartition(".")
            done = parse(name, *arguments[2:], package=package)
            assert done.returncode == 0, f"{said}\n{done.stderr[-500:]}"
            paths = []
        else:
            assert program in OTHERS or arguments[:2] == ["-m", "venv"], said
            paths = []
        assert all((ROOT / path).is_file() for path in paths if "FILE" not in path), said


@pytest.mark.parametrize("file", FILES)
def test_rows_in_a_document_are_rows(file, tmp_path):
    for block in documents.blocks(file, "json"):
        records = [json.loads(line) for line in block.text.splitlines()]
        if "choice" in records[0]:
            read, _ = read_rows(str(tiny.write_rows(tmp_path / "rows.jsonl", records)), person="you")
            assert len(read) == len(records), f"{file}:{block.line}"


@pytest.mark.parametrize("file", FILES)
def test_the_settings_that_a_document_names_are_there(file):
    for key in documents.settings_named(file):
        assert any(documents.has_setting(kind, key) for kind in KINDS), f"{file}: config.{'.'.join(key)}"


@pytest.mark.parametrize("file", FILES)
def test_the_files_that_a_document_names_are_there(file):
    assert [name for name in documents.files_named(file) if not (ROOT / name).exists()] == []
    for path, anchor in documents.links(file):
        assert Path(path).exists(), f"{file}: {path}"
        assert not anchor or anchor in documents.anchors(path), f"{file}: {path}#{anchor}"


def test_the_readme_is_short():
    lines = documents.read("README.md").splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120


def test_the_readme_shows_what_it_promises():
    [code] = documents.blocks("README.md", "python")
    assert len(code.text.splitlines()) <= 10
    for call in ("load", "infer", "score", "adapt", "generate"):
        assert f".{call}(" in code.text
    mentioned = [" ".join(words) for words in documents.commands("README.md")]
    assert {"launch/chat.sh", "launch/quickstart.sh", "launch/test.sh"} <= set(mentioned)
    assert "docs/steering.png" in documents.files_named("README.md")


def test_the_quickstart_is_shell_and_what_it_runs_is_python():
    script = ROOT / "launch" / "quickstart.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    parts = [part.split("\n'")[0] for part in script.read_text().split("-c '")[1:]]
    assert parts
    for part in parts:
        assert compile(part, "quickstart.sh", "exec")
