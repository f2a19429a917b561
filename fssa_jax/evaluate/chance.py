"""The expected calibration error that chance alone gives a calibrated model: it is above 0, and so is its bootstrap."""

from collections.abc import Sequence

import numpy as np


def confidences(log_p: np.ndarray, log_best_other: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of predictions: the confidence, its place in [0, 1] among the bins of ECE, and whether the hit is its event."""
    p = np.exp(np.asarray(log_p, np.float64))
    if log_best_other is None:
        confidence = np.maximum(p, 1 - p)
        return confidence, (confidence - 0.5) * 2, p >= 0.5
    confidence = np.maximum(p, np.exp(np.asarray(log_best_other, np.float64)))
    return confidence, confidence, np.ones_like(p, bool)


def ece_by_chance(
    given: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    weight: np.ndarray,
    rng: np.random.Generator,
    bins: int = 15,
) -> float:
    """The ECE of calibrated predictions with these confidences, by one draw of what was chosen.

    Args:
      given: `confidences` of the targets (*batch), several times if the same targets were predicted from several
        contexts: what was chosen is the same for all.
      weight: of targets (*batch), 0 for padding.
      rng: source of what is chosen.
    """
    chance = rng.random(weight.shape)
    counts = np.zeros((2, bins))
    for confidence, place, expected in given:
        hit = np.where(expected, chance < confidence, chance >= 1 - confidence)
        index = np.clip((place * bins).astype(int), 0, bins - 1).ravel()
        for row, values in enumerate((weight, weight * (confidence - hit))):
            counts[row] += np.bincount(index, values.ravel(), bins)
    return float(np.abs(counts[1]).sum() / max(counts[0].sum(), 1e-9))
