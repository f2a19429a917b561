"""The manner of a text, apart from what it says: attributes that can be read off it, and features that count its marks.

People differ by manner as much as by content, and a sentence encoder hides manner: it was trained to.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fssa_jax.lm.text_encoder import Text

_EMOJI = re.compile("[\U0001f300-\U0001faff\U00002600-\U000027bf\U0001f1e6-\U0001f1ff\u2b50\u2b55]")
_LIST = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+\S", re.MULTILINE)
_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself|yourselves)\b", re.IGNORECASE)
_FIRST_PERSON = re.compile(r"\b(?:i|me|my|mine|we|us|our)\b", re.IGNORECASE)
_CONTRACTION = re.compile(
    r"\b\w+(?:n['’]t|['’](?:re|ve|ll|m|d))\b|\b(?:it|that|there|he|she|what|who|let|here|how|where)['’]s\b",
    re.IGNORECASE,
)
_FORMAL = re.compile(
    r"\b(?:accordingly|additionally|consequently|furthermore|hence|however|moreover|nevertheless|nonetheless|regarding|"
    r"subsequently|therefore|thus|whereas|in addition|in conclusion|it is (?:important|essential|advisable))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?…。！？]+(?=\s|$)|\n")
_FILE = "manner.npz"
_MOST_DEVIATIONS = 5.0

_READ: dict[str, Callable[[str], bool]] = {
    "list": lambda text: len(_LIST.findall(text)) > 1,
    "exclamation": lambda text: "!" in text,
    "question": lambda text: "?" in text,
    "emoji": lambda text: _EMOJI.search(text) is not None,
    "second_person": lambda text: _SECOND_PERSON.search(text) is not None,
    "contraction": lambda text: _CONTRACTION.search(text) is not None,
    "formal": lambda text: _FORMAL.search(text) is not None,
}


def has(attributes: Sequence[str], texts: Sequence[str], long: float) -> Bool[np.ndarray, "texts attributes"]:
    """Whether each text has each attribute; "long" is more than `long` words.

    >>> from fssa_jax.data.manner import has
    >>> has(("long", "question", "contraction"), ["You won't?", "One two three four."], long=3).tolist()
    [[False, True, True], [True, False, False]]
    """
    read = _READ | {"long": lambda text: len(text.split()) > long}
    return np.array([[read[name](text) for name in attributes] for text in texts], bool).reshape(
        len(texts), len(attributes)
    )


_COUNTED: dict[str, Callable[[str], int]] = {
    "list": lambda text: len(_LIST.findall(text)),
    "emoji": lambda text: len(_EMOJI.findall(text)),
    "second_person": lambda text: len(_SECOND_PERSON.findall(text)),
    "first_person": lambda text: len(_FIRST_PERSON.findall(text)),
    "contraction": lambda text: len(_CONTRACTION.findall(text)),
    "formal": lambda text: len(_FORMAL.findall(text)),
    "capitals": lambda text: sum(word.isupper() and len(word) > 1 for word in _WORD.findall(text)),
    "lines": lambda text: text.count("\n"),
    "digits": lambda text: sum(letter.isdigit() for letter in text),
} | {mark: (lambda text, mark=mark: text.count(mark)) for mark in '!?,;:()"…*'}


def marks(text: str) -> list[float]:
    """Counts of marks as log(1 + n), then whether there are any, then the lengths of text, sentences and words."""
    counts = [count(text) for count in _COUNTED.values()]
    words = _WORD.findall(text)
    sentences = max(len(_SENTENCE.findall(text)), 1)
    lengths = [np.log1p(len(words)), np.log1p(len(words) / sentences), sum(map(len, words)) / max(len(words), 1)]
    return [*np.log1p(counts).tolist(), *(float(n > 0) for n in counts), *map(float, lengths)]


class MannerFeaturiser:
    """Features of texts, with more columns for the marks of their manner; together they weigh as much as those.

    Every column is standardised on the training texts; one that hardly varies there is left out.
    """

    def __init__(self, texts: Any, columns: np.ndarray, mean: np.ndarray, spread: np.ndarray, weight: float):
        """`texts` is the featuriser of texts; the columns are numbers of `marks`, with these moments in training."""
        self.texts, self._columns, self._mean, self._spread, self._weight = texts, columns, mean, spread, weight

    @classmethod
    def of(cls, texts: Any, features: np.ndarray, all_texts: Sequence[Text], known: np.ndarray) -> Any:
        """The featuriser of texts with the marks that vary among the `known` ones; itself if none do."""
        found = np.array([marks(all_texts[i][1]) for i in known])
        spread = found.std(0)
        columns = np.flatnonzero(spread > 1e-3)
        if not len(columns):
            return texts
        total = float(np.asarray(features[known], np.float64).var(axis=0).sum()) or 1.0
        weight = (total / len(columns)) ** 0.5
        return cls(texts, columns, found.mean(0)[columns], spread[columns], weight)

    def transform(self, texts: list[Text]) -> np.ndarray:
        """Features (n, d + columns) of texts, including new ones."""
        return self.extended(self.texts.transform(texts), texts)

    def extended(self, features: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
        """The features of texts (n, d) with the columns of their manner."""
        found = np.array([marks(response) for _, response in texts]).reshape(len(texts), 2 * len(_COUNTED) + 3)
        deviations = (found[:, self._columns] - self._mean) / self._spread
        near = np.clip(deviations, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
        return np.column_stack([features, self._weight * near]).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes the featuriser of texts and the columns."""
        self.texts.save(directory)
        kept = {"columns": self._columns, "mean": self._mean, "spread": self._spread, "weight": self._weight}
        np.savez(directory / _FILE, **kept)  # type: ignore[arg-type]

    @classmethod
    def load(cls, directory: Path, texts: Any) -> Any:
        """The featuriser that was saved around that of texts; that of texts alone if there were no such columns."""
        if not (directory / _FILE).exists():
            return texts
        with np.load(directory / _FILE, allow_pickle=False) as arrays:
            return cls(texts, arrays["columns"], arrays["mean"], arrays["spread"], float(arrays["weight"]))
