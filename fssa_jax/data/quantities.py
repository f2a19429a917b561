"""Numbers in texts as features: "a ticket for 24.00 guilders, 150 minutes" is 24 guilders and 150 minutes.

A sentence encoder hardly shows what a number is worth, and to TF-IDF 24 and 25 are two words. A quantity is a number
and its unit; for every unit that is common in the training texts there is a column with the number.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.data.features import UNSPACED
from fssa_jax.lm.text_encoder import Text

_FILE = "quantities.json"
_MIN_SHARE = 0.1  # of the training texts with a quantity of this unit
_MIN_TEXTS = 8
_MAX_COLUMNS = 32
_LOG_RANGE = 100.0  # numbers above 0 that differ by such a factor are compared by their logarithms
_MOST_DEVIATIONS = 5.0  # a number far from those of training counts as this far
_WEIGHT = 10.0  # of the numbers next to the features of texts

_LARGEST = 1e15  # longer numbers are codes, not quantities

_NUMBER = re.compile(r"(?<![\w.,])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![.,]?\d)")
_MARKER = re.compile(r"(?m)^[^\S\n]*\d+[.)]\s")  # of an item of a list
_SIGN = re.compile(r"[$€£¥₹](?=\s?\Z)")
_LABEL = re.compile(r"([^\W\d_]+)[^\S\n]*[:=][^\S\n]*\Z")
_BEFORE = re.compile(r"([^\W\d_]+)(?=[^\w\n]*\Z)")
_AFTER = re.compile(rf"[^\S\n]*([%°$€£¥₹]|-?(?:[{UNSPACED}]|[^\W\d_{UNSPACED}]+))(?![^\S\n]*[:=])")


def quantities(text: str) -> dict[str, float]:
    """The numbers of a text by unit.

    The unit is a currency sign or a label ("Price: 24") in front of the number, or the sign or word after it; without
    one it is the word in front. It is in lower case and without a final "s". The second number with the same unit is
    "unit 2", and so on. Numbers of list items, and those with a decimal comma, are left out.

    >>> from fssa_jax.data.quantities import quantities
    >>> quantities("A ticket for 24.00 guilders, 1 change; back for 1,020 guilders. Class: 2.")
    {'guilder': 24.0, 'change': 1.0, 'guilder 2': 1020.0, 'class': 2.0}
    """
    out: dict[str, float] = {}
    seen: Counter[str] = Counter()
    markers = {match.end() for match in _MARKER.finditer(text)}
    for match in _NUMBER.finditer(text):
        value = float(match.group().replace(",", "").replace("−", "-"))
        if abs(value) > _LARGEST or any(match.end() + more in markers for more in (2, 3)):
            continue
        unit = _unit(text[max(match.start() - 40, 0) : match.start()], text[match.end() : match.end() + 40])
        seen[unit] += 1
        out[unit if seen[unit] == 1 else f"{unit} {seen[unit]}"] = value
    return out


def _unit(before: str, after: str) -> str:
    sign = _SIGN.search(before)
    if sign:
        return sign[0]
    found = _LABEL.search(before) or _AFTER.match(after) or _BEFORE.search(before)
    word = found[1].strip("-").lower() if found else ""
    return word[:-1] if len(word) > 2 and re.search(r"[^s]s\Z", word) else word


class QuantityFeaturiser:
    """Features of texts, with two more columns per unit: the number, standardised, and whether there is one.

    A column that does not vary in training is left out. A column is like a feature of texts, unless more than half of
    the training texts have its unit. The single column of a unit that all have gets `_WEIGHT` times the standard
    deviation of all features of texts together: such texts are descriptions by numbers, and so are people's tastes.
    """

    def __init__(self, texts: Any, columns: list[dict[str, Any]], width: int):
        """`texts` is the featuriser of texts, `width` the number of its features."""
        self.texts, self.columns, self._width = texts, columns, width

    @property
    def units(self) -> list[str]:
        """The units that there are columns for; the unit of a number alone is ""."""
        return list(dict.fromkeys(column["unit"] for column in self.columns))

    @classmethod
    def of(cls, texts: Any, features: np.ndarray, all_texts: Sequence[Text], known: np.ndarray) -> Any:
        """The featuriser of texts with the units that are common in the `known` ones; itself if there are none."""
        found = [quantities(all_texts[i][1]) for i in known]
        counts = Counter(unit for one in found for unit in one)
        least = max(_MIN_SHARE * len(found), _MIN_TEXTS)
        units = [unit for unit, count in counts.most_common() if count >= least][: _MAX_COLUMNS // 2]
        columns = [column for unit in units for column in _columns(unit, [one.get(unit) for one in found])]
        if not columns:
            return texts
        total = float(np.asarray(features[known], np.float64).var(axis=0).sum())
        ordinary, emphasised = (total / features.shape[1]) ** 0.5, _WEIGHT * (total / len(columns)) ** 0.5
        for column in columns:
            common = max(2 * counts[column["unit"]] / len(found) - 1, 0) if column["what"] != "there" else 0
            column["weight"] = max(ordinary, common * emphasised) or 1.0
        return cls(texts, columns, features.shape[1])

    def transform(self, texts: list[Text]) -> np.ndarray:
        """Features (n, d + columns) of texts, including new ones."""
        return self.extended(self.texts.transform(texts), texts)

    def extended(self, features: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
        """The features of texts (n, d) with the columns of their quantities."""
        found = [quantities(response) for _, response in texts]
        more = [_of_column(column, [one.get(column["unit"]) for one in found]) for column in self.columns]
        return np.column_stack([features[:, : self._width], *more]).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes the featuriser of texts and the columns."""
        self.texts.save(directory)
        values = {"columns": self.columns, "width": self._width}
        (directory / _FILE).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, texts: Any) -> Any:
        """The featuriser that was saved around that of texts; that of texts alone if there were no quantities."""
        if not (directory / _FILE).exists():
            return texts
        return cls(texts, **json.loads((directory / _FILE).read_text(encoding="utf-8")))


def _columns(unit: str, values: Sequence[float | None]) -> list[dict[str, Any]]:
    """The columns of a unit, with unit variance over the training texts."""
    there = np.array([value for value in values if value is not None])
    positive = there[there > 0]
    log = bool((there >= 0).all() and len(positive) and there.max() > _LOG_RANGE * positive.min())
    share = len(there) / len(values)
    out = []
    compared = np.log1p(there) if log else there
    if compared.std() > 1e-9 * max(abs(float(compared.mean())), 1.0):
        spread = float(compared.std()) * share**0.5  # a text without one is at the mean
        out.append({"unit": unit, "what": "log" if log else "number", "mean": float(compared.mean()), "spread": spread})
    if share < 1:
        out.append({"unit": unit, "what": "there", "mean": share, "spread": (share * (1 - share)) ** 0.5})
    return out


def _of_column(column: dict[str, Any], values: Sequence[float | None]) -> np.ndarray:
    there = np.array([value is not None for value in values], bool)
    if column["what"] == "there":
        compared = there.astype(np.float64)
    else:
        numbers = np.array([0.0 if value is None else value for value in values])
        numbers = np.log1p(np.maximum(numbers, 0)) if column["what"] == "log" else numbers
        compared = np.where(there, numbers, column["mean"])
    deviations = (compared - column["mean"]) / column["spread"]
    return column["weight"] * np.clip(deviations, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
