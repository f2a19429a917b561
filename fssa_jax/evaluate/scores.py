"""Turns log-probabilities of held-out choices into the series of a report: means over people, bootstrap intervals.

People who judge exactly the same targets, such as two people of opposite weights in `styles`, are resampled together. A
bias for a text costs one of them what the other gains, so resampling them separately would make the intervals of S too
wide. If too few clusters remain, as when everybody judges one list, people are resampled individually.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Evaluation
from fssa_jax.evaluate.chance import confidences, ece_by_chance
from fssa_jax.ops import metrics
from fssa_jax.ops.choices import per_choice, responses_of
from fssa_jax.tasks.predictor import Predictions
from fssa_jax.types import Comparisons

# Fewer clusters than this are too few for a bootstrap.
_GROUPS = 20
_REDRAWS = 40


class Scores:
    """Turns predictions into the series of the report."""

    def __init__(
        self,
        ks,
        mask: np.ndarray,
        targets: Comparisons,
        settings: Evaluation,
        seed: int,
        contestable: np.ndarray | None = None,
    ):
        """`contestable` (users, targets) are the targets between two texts, which S is of; all by default."""
        self.ks = ks
        self.mask = mask
        self._weight = None if targets.weight is None else np.asarray(targets.weight)
        self.report: dict[str, Any] = {}
        self.predictions: dict[str, list[Predictions]] = {}
        self.by_user: dict[str, np.ndarray] = {}
        self._nll: dict[str, np.ndarray] = {}
        chosen, rejected = np.asarray(targets.chosen), np.asarray(targets.rejected)
        offered = np.asarray(per_choice(responses_of(targets), targets))
        if targets.listed is not None:
            offered = np.where(np.concatenate([np.ones((*mask.shape, 2), bool), targets.listed], -1), offered, -1)
        self._pairs = targets.others is None
        self._contestable = np.ones(mask.shape, bool) if contestable is None else contestable
        unique, item = np.unique(np.sort(offered, -1).reshape(-1, offered.shape[-1]), axis=0, return_inverse=True)
        together = _drawn_together(item.reshape(chosen.shape), mask)
        weights = metrics.bootstrap_weights(jax.random.key(seed), int(together.max(initial=-1)) + 1, settings.bootstrap)
        self._weights = np.asarray(weights, np.float64)[:, together]
        self._item, self._side, self._items = item.reshape(chosen.shape), chosen < rejected, len(unique)

    def add(self, name: str, draws: list[Predictions], mask: np.ndarray | None = None) -> None:
        """Adds the series of one predictor, over draws of contexts; the name of the main model is empty."""
        self.predictions[name] = draws
        mask = self.mask if mask is None else mask
        hits = np.stack([draw.hits for draw in draws]).mean(0)
        accuracy = self._per_user(hits, mask)
        self.by_user[name] = accuracy
        nll = self._nll[name] = self._per_user(-np.stack([draw.log_p for draw in draws]).mean(0), mask)
        counts = np.stack(
            [sum(_calibration(draw, k, mask, self._weight) for draw in draws) for k in range(len(self.ks))]
        )
        flat = counts.reshape(*counts.shape[:2], -1)
        prefix = f"{name}_" if name else ""
        own = {"": "accuracy", "unseen": "accuracy_unseen"}
        self.report[own.get(name, name)] = self._means(accuracy)
        if name in ("", "population"):
            self.report[f"{prefix}worst_decile"] = self._over_k(lambda k, w: _worst_decile(accuracy[k], w))
        self.report[f"{prefix}nll"] = self._means(nll)
        self.report[f"{prefix}ece"] = self._over_k(
            lambda k, w: metrics.ece_from_counts(jnp.asarray((w @ flat[k]).reshape(len(w), *counts.shape[2:])))
        )
        self.report[f"{prefix}steering"] = None  # if no two people disagree about a pair
        weight = self._contested(mask)
        if self._pairs and weight.sum() > 0:
            gain, total = (hits * weight).sum(-1), weight.sum(-1)
            self.report[f"{prefix}steering"] = self._over_k(
                lambda k, w: 2 * (w @ gain[k]) / np.maximum(w @ total, 1e-12) - 1
            )

    def add_gains(self, over: str) -> None:
        """Adds gain and control_gain: differences of accuracy from another predictor, paired within people."""
        for name, key in (("", "gain"), ("control", "control_gain")):
            if name in self.by_user:
                self.report[key] = self._means(self.by_user[name] - self.by_user[over])

    def add_ece_by_chance(self, seed: int) -> None:
        """Adds ece_by_chance: the ECE if the main model were calibrated, of choices drawn from its probabilities.

        ECE is above 0 by chance, and more so the fewer the choices are; a bootstrap of it is too.
        """
        rng = np.random.default_rng(seed)
        weight = np.where(self.mask, 1.0 if self._weight is None else self._weight, 0.0)
        out = {}
        for i, k in enumerate(self.ks):
            given = [confidences(draw.log_p[i], _best_other(draw, i)) for draw in self.predictions[""]]
            eces = [ece_by_chance(given, weight, rng) for _ in range(_REDRAWS)]
            out[str(k)] = {"mean": float(np.mean(eces)), "high": float(np.quantile(eces, 0.975))}
        self.report["ece_by_chance"] = out

    def add_nll_rise(self) -> None:
        """Adds nll_rise: from which k to which larger one NLL grows most, or shrinks least, and how much, paired."""
        nll = self._nll[""]
        mean = np.nanmean(nll, axis=1)
        pairs = itertools.combinations(range(len(self.ks)), 2)
        before, after = max(pairs, key=lambda pair: mean[pair[1]] - mean[pair[0]])
        cell = self._means(np.broadcast_to(nll[after] - nll[before], nll.shape))[str(self.ks[0])]
        self.report["nll_rise"] = {"from": self.ks[before], "to": self.ks[after], **cell}

    def add_choices_gains(self) -> None:
        """Adds choices_gain and control_choices_gain: what choices add to the accuracy without any, paired."""
        without = self.by_user[""][self.ks.index(0)]
        for name, key in (("", "choices_gain"), ("control", "control_choices_gain")):
            if name in self.by_user:
                self.report[key] = self._means(self.by_user[name] - without)

    def add_last_gain(self) -> None:
        """Adds last_gain: how much accuracy the last step from one k to the next gains, paired within people."""
        accuracy = self.by_user[""]
        self.report["last_gain"] = self._means(np.broadcast_to(accuracy[-1] - accuracy[-2], accuracy.shape))[
            str(self.ks[-1])
        ]

    def add_steering_gap(self, limit: str) -> None:
        """Adds steering_gap, S minus that of another predictor on the same choices, paired, and their ratio."""
        weight = self._contested(self.mask)
        if not weight.sum():
            return
        own, other = (np.stack([draw.hits for draw in self.predictions[name]]).mean(0) for name in ("", limit))
        gap, total = ((own - other) * weight).sum(-1), weight.sum(-1)
        self.report["steering_gap"] = self._over_k(lambda k, w: 2 * (w @ gap[k]) / np.maximum(w @ total, 1e-12))
        reached, possible = self.report["steering"], self.report[f"{limit}_steering"]
        self.report[f"share_of_{limit}_steering"] = {
            k: reached[k]["mean"] / cell["mean"] if cell["mean"] > 0.01 else None for k, cell in possible.items()
        }

    def _contested(self, mask: np.ndarray) -> np.ndarray:
        """(users, targets) weights of the steering score; see `metrics.contested_weights`."""
        item, side, real = (jnp.asarray(x) for x in (self._item, self._side, mask & self._contestable))
        return np.asarray(metrics.contested_weights(item, side, real, self._items), np.float64)

    def accuracies(self, names: tuple[str, ...], mask: np.ndarray) -> dict[str, Any]:
        """The accuracies of predictors that were added before, on a subset of target rows."""
        out = {}
        for name in names:
            if name in self.predictions:
                hits = np.stack([draw.hits for draw in self.predictions[name]]).mean(0)
                out[name or "accuracy"] = self._means(self._per_user(hits, mask))
        return out

    def _per_user(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(k, users) means over the real targets, by their weights; NaN for users without targets."""
        if self._weight is not None:
            weight = np.where(mask, self._weight, 0)
            total = weight.sum(-1)
            return np.where(total > 0, (values * weight).sum(-1) / np.maximum(total, 1e-6), np.nan)
        count = mask.sum(-1)
        return np.where(count > 0, (values * mask).sum(-1) / np.maximum(count, 1), np.nan)

    def _means(self, values: np.ndarray) -> dict[str, Any]:
        real = ~np.isnan(values)
        filled = np.where(real, values, 0)
        return self._over_k(lambda k, w: (w @ filled[k]) / np.maximum(w @ real[k], 1e-12))

    def _over_k(self, statistic) -> dict[str, Any]:
        everybody = np.ones((1, self._weights.shape[1]))
        out = {}
        for i, k in enumerate(self.ks):
            mean = float(np.asarray(statistic(i, everybody))[0])
            low, high = metrics.interval(jnp.asarray(np.asarray(statistic(i, self._weights), np.float32)))
            out[str(k)] = {"mean": mean, "low": float(low), "high": float(high)}
        return out


def _worst_decile(accuracy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resamples,) mean accuracy of the tenth of the people for whom it is lowest, one person at least."""
    real = ~np.isnan(accuracy)
    order = np.argsort(accuracy[real], kind="stable")
    sorted_weights = weights[:, real][:, order].astype(np.float64)
    wanted = np.maximum(sorted_weights.sum(1) / 10, 1)[:, None]
    before = np.cumsum(sorted_weights, axis=1) - sorted_weights
    taken = np.clip(wanted - before, 0, sorted_weights)
    return (taken * accuracy[real][order][None]).sum(1) / np.maximum(taken.sum(1), 1e-12)


def _calibration(draw: Predictions, k: int, mask: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """`metrics.calibration_counts` of one draw at the k-th context size."""
    best = _best_other(draw, k)
    best = None if best is None else jnp.exp(best)
    p = jnp.exp(draw.log_p[k])
    return np.asarray(metrics.calibration_counts(p, jnp.asarray(mask), best_other=best, weight=weight))


def _best_other(draw: Predictions, k: int) -> np.ndarray | None:
    return None if draw.log_best_other is None else np.asarray(draw.log_best_other[k])


def _drawn_together(item: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(users,) cluster numbers, in order of appearance; users with the same number are resampled together."""
    number: dict[tuple[int, ...], int] = {}
    groups = [
        number.setdefault(tuple(np.sort(items[real])), len(number)) for items, real in zip(item, mask, strict=True)
    ]
    return np.array(groups, int) if len(number) >= _GROUPS else np.arange(len(groups))
