"""Thresholds: what a text is compared with where a person judges it alone, with a thumb or a rating.

A threshold stands for a text in a choice. "I like this" is the choice of the text over the threshold, "I do not" that
of the threshold over the text. It is a row of the table of texts, so its reward is learnt like that of a text.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.lm.text_encoder import Text

_FILE = "thresholds.json"


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold of this name; it takes the place of a response.

    >>> from fssa_jax.data.thresholds import THUMB
    >>> THUMB.text
    ('thumb', '')
    """

    name: str

    @property
    def text(self) -> Text:
        """The row of the table of texts: (name, ""). No text of a person's is like it, for these are never empty."""
        return self.name, ""


Response = str | Threshold
"""A side of a choice."""

THUMB = Threshold("thumb")


def rating_threshold(bound: float) -> Threshold:
    """The threshold that a text passes whose rating is at least `bound`.

    >>> from fssa_jax.data.thresholds import rating_threshold
    >>> rating_threshold(3.0).name
    'rating ≥ 3'
    """
    return Threshold(f"rating ≥ {int(bound) if float(bound).is_integer() else float(bound)!r}")


def is_threshold(text: Text) -> bool:
    """Whether a row of the table of texts is a threshold."""
    return not text[1]


def text_of(prompt: str, response: Response) -> Text:
    """The row of the table of texts that a side of a choice is."""
    return response.text if isinstance(response, Threshold) else (prompt, response)


def check_thresholds(texts: Iterable[Text], known: Collection[Text], place: str) -> None:
    """Raises `UserError` for a threshold that a model does not know."""
    new = next((text for text in texts if is_threshold(text) and text not in known), None)
    if new is None:
        return
    if new == THUMB.text:
        raise UserError(f"{place}: a thumb, but the model was trained without thumbs; leave it out, or train on thumbs")
    raise UserError(
        f"{place}: a rating ({new[0]}), but the model was trained without such a level; leave ratings out, or train on "
        "them with --config.data.ratings=levels"
    )


class ThresholdFeaturiser:
    """Features of texts, with one more column per threshold: `scale` in its own row, 0 in all others.

    A linear function of the features then has a number for every threshold, and a bilinear one a direction of z: how
    easily a person likes anything.
    """

    def __init__(self, texts: Any, thresholds: list[Text], width: int, scale: float):
        """`texts` is the featuriser of texts, `width` the number of its features."""
        self.texts, self.thresholds = texts, list(thresholds)
        self._width, self._scale = width, scale

    @classmethod
    def of(cls, texts: Any, thresholds: list[Text], features: np.ndarray, known: np.ndarray) -> "ThresholdFeaturiser":
        """A threshold is about as long a vector as a text: the root of the total variance of the `known` texts."""
        total = float(np.asarray(features[known], np.float64).var(axis=0).sum()) if len(known) else 0.0
        return cls(texts, thresholds, features.shape[1], float(np.float32(total**0.5 or 1.0)))

    def transform(self, texts: list[Text]) -> np.ndarray:
        """Features (n, d + thresholds) of texts and thresholds.

        Raises:
          UserError: a threshold that was not in training.
        """
        check_thresholds(texts, self.thresholds, "data")
        real = [i for i, text in enumerate(texts) if not is_threshold(text)]
        out = np.zeros((len(texts), self._width + len(self.thresholds)), np.float32)
        if real:
            # Given vectors come back from a saved data set with the columns of the thresholds.
            out[real, : self._width] = self.texts.transform([texts[i] for i in real])[:, : self._width]
        for i in set(range(len(texts))) - set(real):
            out[i, self._width + self.thresholds.index(texts[i])] = self._scale
        return out

    def extended(self, features: np.ndarray) -> np.ndarray:
        """The features of texts (n, d), and those of the thresholds in the rows after them."""
        texts = np.pad(features, ((0, 0), (0, len(self.thresholds))))
        return np.concatenate([texts, self.transform(self.thresholds)]).astype(np.float32)

    def save(self, directory: Path) -> None:
        """Writes the featuriser of texts, and the thresholds, which need not be among the texts of a data set."""
        self.texts.save(directory)
        values = {"names": [name for name, _ in self.thresholds], "width": self._width, "scale": self._scale}
        (directory / _FILE).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, texts: Any) -> Any:
        """The featuriser that was saved around that of texts; that of texts alone if there were no thresholds."""
        if not (directory / _FILE).exists():
            return texts
        values = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        thresholds = [Threshold(name).text for name in values["names"]]
        return cls(texts, thresholds, values["width"], values["scale"])


def thresholds_of(featuriser: Any) -> list[Text]:
    """The thresholds that features have columns for, which are those that a model was trained with."""
    return featuriser.thresholds if isinstance(featuriser, ThresholdFeaturiser) else []
