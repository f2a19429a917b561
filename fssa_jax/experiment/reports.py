"""Where the reports of a work directory go."""

import itertools
import json
import re
from pathlib import Path

from fssa_jax.data.dataset import SPLITS


def report_directory(workdir: Path, data: str = "", split: str = "test", quick: bool = False) -> Path:
    """report/ for the test users; report-val/ and report-NAME/ for validation users and other people's rows.

    Other rows whose NAME is taken get a number: reports of different rows never replace each other. Quick reports are
    in a directory of their own, quick/, so that none replaces a whole one.
    """
    if quick:
        workdir = workdir / "quick"
    if not data:
        return workdir / ("report" if split == "test" else f"report-{split}")
    name = re.sub(r"[^\w-]+", "-", Path(data).resolve().name.lstrip(".").split(".")[0]).strip("-") or "data"
    name = f"{name}-rows" if name in SPLITS else name
    for number in itertools.count(1):
        directory = workdir / f"report-{name}{'' if number == 1 else f'-{number}'}"
        if not directory.exists() or _reported(directory) == source_name(data):
            return directory
    raise AssertionError  # not reached


def source_name(data: str) -> str:
    """Rows as a report names them: the whole path of a file, or a hub name."""
    return str(Path(data).resolve()) if Path(data).exists() else data


def _reported(directory: Path) -> str:
    """The rows that a report is of; "" if it cannot be read."""
    try:
        content = json.loads((directory / "report.json").read_bytes())
        return str(content.get("source", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
