"""Diagnostics of the latent: posterior collapse, and encoders that count choices instead of reading them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fssa_jax.data.dataset import Truth
from fssa_jax.evaluate.bayes import posterior_shift
from fssa_jax.evaluate.controls import contradicted_context, scrambled_context
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import Episode

_ACTIVE = 0.01
_STILL = 1e-6  # a latent that moves less than this has collapsed, which has its own warning


def latent_health(mean: np.ndarray, kl: np.ndarray | None) -> dict[str, float | int]:
    """Signs of posterior collapse.

    A unit is active if the variance of its posterior mean across users is above .01 (arXiv 1509.00519).

    Args:
      mean: (users, m) means of q(z | C).
      kl: (users, m) divergence of q(z | C) from N(0, I); None for a deterministic latent.

    Returns:
      units, active_units, active_share, variance (summed over units), and, given kl, its mean over users.
    """
    variance = mean.var(axis=0)
    active = int((variance > _ACTIVE).sum())
    health: dict[str, float | int] = {
        "units": mean.shape[1],
        "active_units": active,
        "active_share": active / max(mean.shape[1], 1),
        "variance": float(variance.sum()),
    }
    if kl is not None:
        health["kl"] = float(kl.sum(axis=-1).mean())
    return health


def drift(
    predictor: Predictor, episodes: Episode, ks: Sequence[int], seed: int, truth: Truth | None, undecided: bool
) -> dict[str, Any]:
    """Tests whether z depends on the choices or on their number: |z| by k for several kinds of contexts.

    * norm: a person's own context. The posterior mean moves away from the prior as evidence accumulates.
    * norm_scrambled: every choice is from another person. A few such choices can still look like one person's.
    * norm_contradicted: each choice is followed by its reverse (k rounded up to an even number).
    * bayes, bayes_scrambled, if the limit is known: how far the first two contexts move the exact posterior, as the
      root mean square over texts of E[r(y) | C] − E[r(y)], in nats. If |z| grows in proportion, it tracks the evidence.

    `counted` compares, at the largest k, the shift of z by contradicting choices with the shift by a person's own, both
    relative to the empty context: 0 for an encoder that reads choices, towards 1 for one that counts them. It is left
    out if `undecided`: with a population model contradicting choices carry information, and with noiseless choices they
    do not occur.
    """
    mixed = dataclasses.replace(episodes, context=scrambled_context(episodes.context, seed))
    against = dataclasses.replace(episodes, context=contradicted_context(episodes.context))
    ks, most = sorted(set(ks)), max(ks)

    def norms(these: Episode, even: bool = False) -> dict[str, float]:
        found = {str(k): predictor.latents(these, k + (k % 2 if even else 0)) for k in ks}
        return {k: float(np.linalg.norm(z, axis=-1).mean()) for k, z in found.items()}

    out: dict[str, Any] = {
        "norm": norms(episodes),
        "norm_scrambled": norms(mixed),
        "norm_contradicted": norms(against, even=True),
    }
    nothing = predictor.latents(episodes, 0)
    moved, counted = (
        float(np.linalg.norm(predictor.latents(these, k) - nothing, axis=-1).mean())
        for these, k in ((episodes, most), (against, most + most % 2))
    )
    if not undecided and moved > _STILL:
        out["counted"] = counted / moved
    if truth is not None:
        for name, these in (("bayes", episodes), ("bayes_scrambled", mixed)):
            out[name] = {str(k): posterior_shift(truth, truncate_context(these, k).context) for k in ks}
    return out


def context_effect(log_p: np.ndarray, mask: np.ndarray) -> float:
    """Mean change of a probability due to the longest context, from log p (ks, users, targets)."""
    p = np.exp(log_p)
    return float(np.abs(p[-1] - p[0])[mask].mean())
