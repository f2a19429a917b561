"""Objectives of neural processes for preferences, on the smallest unit. Callers vmap."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from fssa_jax.ops._checks import as_scalar, check_shapes
from fssa_jax.ops.distributions import gaussian_kl, standard_normal_like
from fssa_jax.types import DiagGaussian

Objective = Literal["elbo", "published", "vpl", "predictive"]


# A sum of weights below this is that of nothing.
_LEAST_WEIGHT = 1e-6


def masked_mean(
    values: Float[ArrayLike, "*batch n"],
    mask: Bool[ArrayLike, "*batch n"],
    weight: Float[ArrayLike, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean over the last axis where `mask` holds, Σ w x / Σ w; 0, with zero gradient, if it holds nowhere.

    Args:
      values: x, (*batch, n). Those that do not count may be anything.
      mask: which values count.
      weight: w ≥ 0; 1 for all by default.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import masked_mean
    >>> print(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    check_shapes(values=(values, "*batch n"), mask=(mask, "*batch n"))
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    if weight is not None:
        check_shapes(values=(values, "*batch n"), weight=(weight, "*batch n"))
        weight = jnp.where(mask, jnp.asarray(weight), 0)
        # Masked twice: a value that does not count may not be finite.
        total = jnp.sum(weight * jnp.where(mask, values, 0), axis=-1)
        return total / jnp.maximum(weight.sum(axis=-1), _LEAST_WEIGHT)
    total = jnp.sum(jnp.where(mask, values, 0), axis=-1)
    return total / jnp.maximum(mask.sum(axis=-1), 1).astype(total.dtype)


def latent_roles(
    objective: Objective,
    q_context: DiagGaussian,
    q_targets: DiagGaussian | None = None,
    q_union: DiagGaussian | None = None,
) -> tuple[DiagGaussian, DiagGaussian]:
    """The distribution that z is sampled from, and the reference of its KL divergence.

    | objective | samples z ~ | KL( · ‖ · )              | source                                     |
    |-----------|-------------|--------------------------|--------------------------------------------|
    | elbo      | q(z | C∪T)  | q(z | C∪T) ‖ q(z | C)    | neural-process ELBO, arXiv 1807.01622 eq. 5 |
    | published | q(z | C)    | q(z | C) ‖ q(z | T)      | published code of arXiv 2412.13998         |
    | vpl       | q(z | C)    | q(z | C) ‖ N(0, I)       | VPL, arXiv 2408.10075                      |
    | predictive | q(z | C)   | q(z | C) ‖ N(0, I)       | maximum likelihood, arXiv 2007.01332       |

    "predictive" is for `neural_process_loss(..., marginal=True)`, which averages probabilities.

    Args:
      objective: a name from the table.
      q_context, q_targets, q_union: q(z | C), q(z | T), q(z | C∪T), (*batch, m). Those that the objective does not use
        may be None.

    Raises:
      ValueError: the objective is unknown, a distribution that it needs is missing, or shapes differ.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, latent_roles
    >>> q = DiagGaussian(jnp.full(3, 2.0), jnp.ones(3))
    >>> sampled_from, reference = latent_roles("vpl", q)
    >>> print(sampled_from.mean, reference.mean)
    [2. 2. 2.] [0. 0. 0.]
    """
    for name, q in (("q_context", q_context), ("q_targets", q_targets), ("q_union", q_union)):
        if q is not None:
            arrays = {"q_context.mean": q_context.mean, f"{name}.mean": q.mean, f"{name}.scale": q.scale}
            check_shapes(**{key: (array, "*batch m") for key, array in arrays.items()})
    if objective == "elbo" and q_union is not None:
        return q_union, q_context
    if objective == "published" and q_targets is not None:
        return q_context, q_targets
    if objective in ("vpl", "predictive"):
        return q_context, standard_normal_like(q_context)
    if objective not in get_args(Objective):
        raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}; got {objective!r}")
    needed = "q_union" if objective == "elbo" else "q_targets"
    raise ValueError(f"objective {objective!r} needs {needed}")


class NPLoss(NamedTuple):
    """The terms of `neural_process_loss`, in nats: loss = nll + kl_weight · kl.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import neural_process_loss
    >>> neural_process_loss(jnp.log(jnp.full((1, 1), 0.5)), jnp.array([True]))._fields
    ('loss', 'nll', 'kl')
    """

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    kl: Float[Array, ""]


def neural_process_loss(
    log_likelihood: Float[ArrayLike, "samples targets"],
    mask: Bool[ArrayLike, " targets"],
    sampled_from: DiagGaussian | None = None,
    reference: DiagGaussian | None = None,
    kl_weight: ArrayLike = 0.0,
    marginal: bool = False,
    log_weights: Float[ArrayLike, " samples"] | None = None,
    weight: Float[ArrayLike, " targets"] | None = None,
) -> NPLoss:
    """Negative log-likelihood of one user's targets, plus the weighted KL divergence of the latent.

    L = −Σ_s w_s (1/|T|) Σ_t log p(t | z_s) + β KL(sampled_from ‖ reference)

    With weights v of the targets, Σ_t v_t log p(t | z_s) / Σ_t v_t takes the place of the mean.

    Args:
      log_likelihood: log p(t | z_s) for every latent sample s and target t.
      mask: which targets are real. If none is, the likelihood term is 0.
      sampled_from, reference: the two distributions from `latent_roles`. None for a deterministic latent: the KL term
        is then 0.
      kl_weight: β ≥ 0, a number, which may be traced.
      marginal: the first term is −(1/|T|) Σ_t log Σ_s w_s p(t | z_s): the likelihood with z integrated out, not a
        bound on it.
      log_weights: log w of the latent samples; 1/S each by default.
      weight: v, of the targets; 1 each by default.

    Returns:
      The loss and its two terms, scalars.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import neural_process_loss
    >>> out = neural_process_loss(jnp.log(jnp.full((2, 3), 0.5)), jnp.array([True, True, False]))
    >>> print(out.loss.round(4))
    0.6931
    """
    check_shapes(log_likelihood=(log_likelihood, "samples targets"), mask=(mask, "targets"))
    log_likelihood, kl_weight = jnp.asarray(log_likelihood), as_scalar("kl_weight", kl_weight)
    samples = log_likelihood.shape[0]
    if log_weights is None:
        log_weights = jnp.full(samples, -jnp.log(samples))
    check_shapes(log_weights=(log_weights, "samples"))
    log_weights = jnp.asarray(log_weights)
    if marginal:
        log_likelihood = jax.nn.logsumexp(log_likelihood + log_weights[:, None], axis=0, keepdims=True)
        log_weights = jnp.zeros(1)
    if weight is not None:
        check_shapes(log_likelihood=(log_likelihood, "samples targets"), weight=(weight, "targets"))
        weight = jnp.broadcast_to(jnp.asarray(weight), log_likelihood.shape)
    every = jnp.broadcast_to(jnp.asarray(mask), log_likelihood.shape)
    nll = -jnp.sum(jnp.exp(log_weights) * masked_mean(log_likelihood, every, weight))
    if sampled_from is None or reference is None:
        return NPLoss(nll, nll, jnp.zeros_like(nll))
    check_shapes(sampled_from=(sampled_from.mean, "m"), reference=(reference.mean, "m"))
    kl = gaussian_kl(sampled_from, reference)
    return NPLoss(nll + kl_weight * kl, nll, kl)
