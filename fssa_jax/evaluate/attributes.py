"""Attributes of texts that can be read off them, and how far what is written moves between people who want opposites.

Nobody has to say what people want. A person's taste for an attribute is how often they chose the response that has it,
among their choices between one that has it and one that lacks it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from fssa_jax.data.dataset import Split
from fssa_jax.data.features import Text
from fssa_jax.data.manner import has
from fssa_jax.data.thresholds import is_threshold

_LEAST_PEOPLE = 2


def median_words(texts: Sequence[str]) -> float:
    """The median number of words."""
    return float(np.median([len(text.split()) for text in texts])) if texts else 0.0


def tastes(
    split: Split, texts: Sequence[Text], attributes: Sequence[str], people: np.ndarray, long: float
) -> Float[np.ndarray, "people attributes"]:
    """(1 + n⁺) / (2 + n) of every person: of their n choices that an attribute decides, n⁺ are of what has it.

    NaN without such choices. All of a person's choices between texts count; one of a list is compared with each of the
    others. Thumbs and ratings do not count: how easily a person likes anything is no taste for an attribute.
    """
    table = split.table
    chosen, mask = (np.asarray(x)[people] for x in (table.chosen, table.mask))
    others = np.asarray(table.rejected)[people][..., None]
    if table.others is not None:
        others = np.concatenate([others, np.asarray(table.others)[people]], axis=-1)
    alone = np.array([is_threshold(text) for text in texts])
    real = mask[..., None] & (others >= 0) & ~alone[others] & ~alone[chosen][..., None]
    used = np.unique(np.concatenate([np.broadcast_to(chosen[..., None], others.shape)[real], others[real]]))
    found = np.zeros((len(texts), len(attributes)), bool)
    found[used] = has(attributes, [texts[i][1] for i in used], long)
    mine, other = found[chosen][..., None, :], found[others]  # (people, 2, rows, others, attributes)
    decided = (mine != other) & real[..., None]
    number, wanted = decided.sum((1, 2, 3)), (decided & mine).sum((1, 2, 3))
    return np.where(number > 0, (1 + wanted) / (2 + number), np.nan)


def opposed(taste: Float[np.ndarray, "people attributes"]) -> Int[np.ndarray, "people attributes"]:
    """1 for the third of the people who want an attribute most, −1 for the third who want it least, else 0.

    People on the wrong side of ½ are in neither. 0 for all where either side has fewer than two people.

    >>> import numpy as np
    >>> from fssa_jax.evaluate.attributes import opposed
    >>> opposed(np.array([[0.9], [0.8], [0.6], [0.4], [0.2], [np.nan], [0.1]])).ravel().tolist()
    [1, 1, 0, 0, -1, 0, -1]
    """
    side = np.zeros(taste.shape, int)
    for a in range(taste.shape[1]):
        known = np.flatnonzero(np.isfinite(taste[:, a]))
        order = known[np.argsort(taste[known, a], kind="stable")]
        third = len(order) // 3
        least = [i for i in order[:third] if taste[i, a] < 0.5]
        most = [i for i in order[len(order) - third :] if taste[i, a] > 0.5]
        if min(len(least), len(most)) >= _LEAST_PEOPLE:
            side[least, a], side[most, a] = -1, 1
    return side


def attribute_report(
    attributes: Sequence[str],
    found: Bool[np.ndarray, "rows attributes"],
    side: Int[np.ndarray, "people attributes"],
    people: Int[np.ndarray, " rows"],
    prompts: Sequence[str],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Shares of responses with each attribute, and the movement between opposed people, with 95 % intervals.

        movement = P(attribute | people who want it) − P(attribute | people who do not)

    Intervals resample people and prompts (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 2007). The mean
    is over attributes with people on either side.

    Args:
      attributes: names.
      found: of the responses.
      side: of `opposed`.
      people: (rows,) who each response was written for.
      prompts: (rows,) what it answers.
      draws, seed: of the bootstrap.
    """
    _, prompt = np.unique(np.asarray(prompts), return_inverse=True)
    rng = np.random.default_rng(seed)
    weights = np.concatenate(
        [np.ones((1, len(people))), *(_resampled(rng, people, prompt, len(side)) for _ in range(draws))]
    )
    moved = np.full((len(weights), len(attributes)), np.nan)
    for a in range(len(attributes)):
        sides = [side[people, a] == sign for sign in (1, -1)]
        if not all(mine.any() for mine in sides):
            continue
        with np.errstate(invalid="ignore"):
            most, least = (weights[:, mine] @ found[mine, a] / weights[:, mine].sum(1) for mine in sides)
        moved[:, a] = most - least
    known = np.isfinite(moved[0])
    out: dict[str, Any] = {
        name: {"share": float(found[:, a].mean()), "movement": _interval(moved[:, a]) if known[a] else None}
        for a, name in enumerate(attributes)
    }
    with np.errstate(invalid="ignore"):  # a draw may have nobody on one side
        mean = np.nansum(moved[:, known], axis=1) / np.isfinite(moved[:, known]).sum(axis=1)
    return {"attributes": out, "attribute_movement": _interval(mean) if known.any() else None}


def _resampled(rng: np.random.Generator, people: np.ndarray, prompt: np.ndarray, number: int) -> np.ndarray:
    """(1, rows) how often each row counts if people and prompts are drawn with replacement."""
    prompts = int(prompt.max(initial=0)) + 1
    each = [np.bincount(rng.integers(n, size=n), minlength=n) for n in (number, prompts)]
    return (each[0][people] * each[1][prompt])[None].astype(float)


def _interval(values: np.ndarray) -> dict[str, float]:
    """The first value, and the 95 % interval of the others."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975)) if len(values) > 1 else (np.nan, np.nan)
    return {"mean": float(values[0]), "low": float(low), "high": float(high)}
