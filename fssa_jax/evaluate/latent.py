"""Whether a latent says anything, and whether it reads choices or counts them."""

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
_STILL = 1e-6  # a latent that nothing moves farther than this has collapsed, which is said elsewhere


def latent_health(mean: np.ndarray, kl: np.ndarray | None) -> dict[str, float | int]:
    """Signs of posterior collapse.

    A unit is active if the variance of its posterior mean across users is above .01 (arXiv 1509.00519).

    Args:
      mean: (users, m) of q(z | C).
      kl: (users, m) divergence of q(z | C) to N(0, I); None for a latent without width.

    Returns:
      units, active_units, active_share, variance (summed over units), and with a KL divergence its mean over users.
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
    """Whether z reads choices or counts them: |z| by k, of several kinds of contexts.

    * norm: people's own. The mean of a posterior moves away from its prior as evidence comes in.
    * norm_scrambled: every choice is another person's. These too look like somebody's, the more so the fewer they are.
    * norm_contradicted: each choice next to its reverse (k rounded up to an even number).
    * bayes, bayes_scrambled, where the limit is known: how far the first two move the exact posterior, as the root mean
      square over texts of E[r(y) | C] − E[r(y)], in nats. Where |z| grows as this does, it tracks what is known.

    `counted` is how far contradicting choices move z from where it is without any, as a share of how far a person's own
    do, at the largest k: 0 for an encoder that reads choices, towards 1 for one that counts them. It is left out where
    `undecided`: with a population model, to be undecided is news, and where choices have no noise nobody is.
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
    """Mean change of a probability by the longest context, from log p (ks, users, targets)."""
    p = np.exp(log_p)
    return float(np.abs(p[-1] - p[0])[mask].mean())
