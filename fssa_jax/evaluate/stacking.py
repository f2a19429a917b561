"""Stacking: the weights with which models are averaged, from their predictions for people they were not trained on."""

import numpy as np
from jaxtyping import Float

_ROUNDS = 500


def stack(
    log_p: Float[np.ndarray, "models *targets"], weight: Float[np.ndarray, "*targets"]
) -> Float[np.ndarray, " models"]:
    """argmax_w Σ_t weight_t log Σ_i w_i p_i(t), w on the simplex, by EM (Yao et al., Bayesian Analysis 2018).

    Args:
      log_p: log-probabilities of what was chosen, in nats; a model that is -inf or NaN anywhere gets 0.
      weight: of the targets; 0 for padding.

    >>> import numpy as np
    >>> from fssa_jax.evaluate.stacking import stack
    >>> right_for_half = np.log([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9], [0.2, 0.2, 0.2, 0.2]])
    >>> stack(right_for_half, np.ones(4)).round(2).tolist()
    [0.5, 0.5, 0.0]
    """
    weight = np.broadcast_to(weight, log_p.shape[1:])
    log_p, counted = log_p[:, weight > 0], weight[weight > 0]
    usable = np.isfinite(log_p).all(axis=1)
    if not usable.any() or not len(counted):
        return np.full(len(log_p), 1 / len(log_p))
    p = np.exp(log_p[usable] - log_p[usable].max(axis=0))
    shares = np.full(len(p), 1 / len(p))
    for _ in range(_ROUNDS):
        joint = shares[:, None] * p
        shares = (joint / joint.sum(axis=0)) @ counted / counted.sum()
    out = np.zeros(len(log_p))
    out[usable] = shares
    return out


def mixed(log_p: Float[np.ndarray, "models *targets"], shares: Float[np.ndarray, " models"]) -> np.ndarray:
    """log Σ_i w_i p_i(t) of every target; models without weight are not looked at."""
    some = shares > 0
    with np.errstate(divide="ignore"):
        terms = log_p[some] + np.log(shares[some]).reshape(-1, *[1] * (log_p.ndim - 1))
    most = terms.max(axis=0)
    return most + np.log(np.exp(terms - most).sum(axis=0))
