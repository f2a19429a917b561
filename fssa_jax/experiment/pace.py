"""How long an evaluation of a policy takes, by the pace of the last one in the same work directory."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax

_REPORTS = ("report*/report.json", "quick/report*/report.json")


@dataclasses.dataclass(frozen=True)
class Amount:
    """What an evaluation does: sequences are scored, and responses are written."""

    sequences: int
    responses: int


def pace_of(amount: Amount, scoring: float, writing: float) -> dict[str, Any]:
    """What a report says of the pace: seconds per sequence and per response, and the device.

    Args:
      amount: what was done.
      scoring, writing: seconds that it took.
    """
    per = {
        "seconds_per_sequence": scoring / amount.sequences if amount.sequences else None,
        "seconds_per_response": writing / amount.responses if amount.responses else None,
    }
    return {**per, "device": _device()}


def expected_seconds(workdir: Path, amount: Amount) -> float | None:
    """Seconds by the pace of the newest report of a work directory on such a device; None where none tells it."""
    found = [path for pattern in _REPORTS for path in workdir.glob(pattern)]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            pace = json.loads(path.read_text(encoding="utf-8")).get("pace") or {}
        except (OSError, ValueError):
            continue  # a report that cannot be read is replaced by the next evaluation
        if pace.get("device") != _device():
            continue
        parts = (amount.sequences, pace["seconds_per_sequence"]), (amount.responses, pace["seconds_per_response"])
        if all(seconds is not None for number, seconds in parts if number):
            return sum(number * seconds for number, seconds in parts if number)
    return None


def _device() -> str:
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
