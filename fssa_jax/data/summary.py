"""A data set in words: people, choices, texts, what was left out, and what to expect of a training on it."""

from typing import Any

import numpy as np

from fssa_jax.data.dataset import SPLITS, Dataset, has_lists
from fssa_jax.types import ChoiceTable

_FEW_TRAINING, _FEW_TESTING, _FEW_CHOICES = 50, 20, 3
_MANY_LOST = 0.1  # share of the rows


def summary(dataset: Dataset) -> list[str]:
    """Facts about a data set, a line each."""
    out = []
    counts = {name: np.asarray(split.table.count) for name, split in dataset.splits.items()}
    out.append("people: " + ", ".join(f"{len(counts[name])} {name}" for name in SPLITS if name in counts))
    every = np.concatenate(list(counts.values()))
    for pool, name in enumerate(("context", "target")):
        out.append(f"{name} choices per person: {_spread(every[:, pool])}")
    if has_lists(dataset):
        most = max(
            2 + split.table.others.shape[-1] for split in dataset.splits.values() if split.table.others is not None
        )
        out.append(f"choices are of one among up to {most} responses")
    judged = np.concatenate([_judged_by(split.table) for split in dataset.splits.values()])
    thresholds = dataset.thresholds
    alone = int(thresholds[judged].sum()) and sum(_alone(split.table, thresholds) for split in dataset.splits.values())
    if alone:
        out.append(f"choices between a text and a threshold, from thumbs and ratings: {alone}")
    judged = judged[~thresholds[judged]]
    again = np.unique(judged, return_counts=True)[1]
    share = (again > 1).mean() if len(again) else 0
    out.append(f"texts: {int((~thresholds).sum())}, {share:.0%} of them judged by more than one person")
    out += _left_out(dataset.report)
    enough = np.sort(counts["test"][:, 0])
    out.append(
        f"k that can be evaluated: up to {enough[0]} for every test person, up to {enough[len(enough) // 2]} for half"
    )
    return out


def data_warnings(dataset: Dataset) -> list[str]:
    """What makes a training on these data unreliable."""
    out = []
    people = {name: len(split.users) for name, split in dataset.splits.items()}
    if people["train"] < _FEW_TRAINING:
        out.append(f"only {people['train']} people to train on: how people differ is learnt from many; give more")
    held_out = min(people["val"], people["test"])
    if held_out < _FEW_TESTING:
        out.append(f"only {held_out} people to validate or test on: the scores will be uncertain by many points")
    context = np.asarray(dataset.splits["train"].table.count)[:, 0]
    if np.median(context) < _FEW_CHOICES:
        out.append(f"half of the people have fewer than {_FEW_CHOICES} context choices: little can be read from them")
    lost = dataset.report.get("left_out_rows", {}).get("texts in both pools", 0)
    if lost > _MANY_LOST * max(dataset.report.get("rows", 0), 1):
        out.append(
            f"{lost} rows are left out because context and targets would share a text: where texts are offered again "
            "and again by design, name the situation of every row in a column 'situation'"
        )
    return out


def _spread(values: np.ndarray) -> str:
    return f"{values.min()} / {int(np.median(values))} / {values.max()} (min / median / max)"


def _judged_by(table: ChoiceTable) -> np.ndarray:
    """The texts of each person, each once per person."""
    sides = [table.chosen, table.rejected] + ([] if table.others is None else list(np.moveaxis(table.others, -1, 0)))
    real = np.asarray(table.mask)
    person = np.broadcast_to(np.arange(len(real))[:, None, None], real.shape)
    pairs = np.concatenate([np.stack([person[real], np.asarray(side)[real]], -1) for side in sides])
    return np.unique(pairs[pairs[:, 1] >= 0], axis=0)[:, 1]


def _alone(table: ChoiceTable, thresholds: np.ndarray) -> int:
    """The number of choices between a text and a threshold."""
    either = thresholds[np.asarray(table.chosen)] | thresholds[np.asarray(table.rejected)]
    return int((either & np.asarray(table.mask)).sum())


def _left_out(report: dict[str, Any]) -> list[str]:
    read = max(report.get("read", 0) or report.get("rows", 0), 1)
    numbers = {
        "bad rows": len(report.get("skipped", [])),
        "ties": report.get("ties", 0),
        "unanswered": report.get("unanswered", 0),
        "duplicates": report.get("duplicates", 0),
        **report.get("left_out_rows", {}),
    }
    said = [f"{number} {what} ({number / read:.1%})" for what, number in numbers.items() if number]
    people = len(report.get("left_out_users", []))
    out = [f"rows left out: {', '.join(said)}"] if said else []
    return [*out, f"people left out for too few choices: {people}"] if people else out
