"""Objectives of neural processes and of policies for preferences, on the smallest unit. Callers vmap."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fssa_jax.ops.distributions import gaussian_kl, standard_normal_like
from fssa_jax.types import DiagGaussian

Objective = Literal["elbo", "published", "vpl", "predictive"]


def masked_mean(values: Float[Array, "*batch n"], mask: Bool[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Mean over the last axis where `mask` holds; 0, with zero gradient, where nothing does."""
    total = jnp.sum(jnp.where(mask, values, 0), axis=-1)
    return total / jnp.maximum(mask.sum(axis=-1), 1).astype(total.dtype)


def latent_roles(
    objective: Objective,
    q_context: DiagGaussian,
    q_targets: DiagGaussian | None = None,
    q_union: DiagGaussian | None = None,
) -> tuple[DiagGaussian, DiagGaussian]:
    """The distribution that z is sampled from, and the one its KL divergence is taken to.

    | objective | samples z ~ | KL( · ‖ · )              | source                                     |
    |-----------|-------------|--------------------------|--------------------------------------------|
    | elbo      | q(z | C∪T)  | q(z | C∪T) ‖ q(z | C)    | neural-process ELBO, arXiv 1807.01622 eq. 5 |
    | published | q(z | C)    | q(z | C) ‖ q(z | T)      | published code of arXiv 2412.13998         |
    | vpl       | q(z | C)    | q(z | C) ‖ N(0, I)       | VPL, arXiv 2408.10075                      |
    | predictive | q(z | C)   | q(z | C) ‖ N(0, I)       | maximum likelihood, arXiv 2007.01332       |

    "predictive" is for `neural_process_loss(..., marginal=True)`, which averages probabilities.

    Args:
      objective: a name of the table.
      q_context, q_targets, q_union: q(z | C), q(z | T), q(z | C∪T), (*batch, m); what an objective does not
        name may be None.

    Raises:
      ValueError: the objective is unknown, or a distribution that it needs is missing.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, latent_roles
    >>> q = DiagGaussian(jnp.full(3, 2.0), jnp.ones(3))
    >>> sampled_from, reference = latent_roles("vpl", q)
    >>> print(sampled_from.mean, reference.mean)
    [2. 2. 2.] [0. 0. 0.]
    """
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
    """The terms of `neural_process_loss`, in nats: loss = nll + kl_weight · kl."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    kl: Float[Array, ""]


def neural_process_loss(
    log_likelihood: Float[Array, "samples targets"],
    mask: Bool[Array, " targets"],
    sampled_from: DiagGaussian | None = None,
    reference: DiagGaussian | None = None,
    kl_weight: float = 0.0,
    marginal: bool = False,
) -> NPLoss:
    """Negative log-likelihood of one user's targets, plus the weighted KL divergence of the latent.

    L = −(1/S) Σ_s (1/|T|) Σ_t log p(t | z_s) + β KL(sampled_from ‖ reference)

    Args:
      log_likelihood: log p(t | z_s) for every latent sample s and target t.
      mask: which targets are real. With none, the likelihood term is 0.
      sampled_from, reference: the two distributions that `latent_roles` names. None for a
        deterministic latent: the KL term is then 0.
      kl_weight: β ≥ 0.
      marginal: take −(1/|T|) Σ_t log (1/S) Σ_s p(t | z_s) for the first term: the likelihood of what is
        predicted when z is integrated out, not a bound on it.

    Returns:
      The loss and its two terms, scalars.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import neural_process_loss
    >>> out = neural_process_loss(jnp.log(jnp.full((2, 3), 0.5)), jnp.array([True, True, False]))
    >>> print(out.loss.round(4))
    0.6931
    """
    if marginal:
        log_likelihood = jax.nn.logsumexp(log_likelihood, axis=0, keepdims=True) - jnp.log(log_likelihood.shape[0])
    nll = -jnp.mean(masked_mean(log_likelihood, jnp.broadcast_to(mask, log_likelihood.shape)))
    if sampled_from is None or reference is None:
        return NPLoss(nll, nll, jnp.zeros_like(nll))
    kl = gaussian_kl(sampled_from, reference)
    return NPLoss(nll + kl_weight * kl, nll, kl)


Preference = Literal["sigmoid", "ipo", "hinge", "robust"]
Worth = Literal["advantage", "reward"]


def dpo_loss(
    chosen: Float[Array, "*batch"],
    rejected: Float[Array, "*batch"],
    reference_chosen: Float[Array, "*batch"],
    reference_rejected: Float[Array, "*batch"],
    *,
    beta: float,
    kind: Preference = "sigmoid",
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch"]:
    """The loss of a policy on a choice, from log-probabilities of the two responses.

    With the margin h = [log π(y⁺) − log π_ref(y⁺)] − [log π(y⁻) − log π_ref(y⁻)] and label smoothing ε:

    | kind    | loss                                              | source                                    |
    |---------|---------------------------------------------------|-------------------------------------------|
    | sigmoid | −(1 − ε) log σ(βh) − ε log σ(−βh)                 | DPO, arXiv 2305.18290; ε > 0: conservative |
    | robust  | [−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε)    | arXiv 2403.00409                          |
    | ipo     | (h − 1 / 2β)²                                     | arXiv 2310.12036                          |
    | hinge   | max(0, 1 − βh)                                    | SLiC, arXiv 2305.10425                    |

    Args:
      chosen, rejected: log π(y | x), in nats; divided by the numbers of tokens for a length-normalised loss.
      reference_chosen, reference_rejected: the same of the reference model. They do not depend on the person.
      beta: how dear it is to leave the reference, > 0.
      label_smoothing: ε in [0, ½), the share of choices that are taken to be wrong; for sigmoid and robust only.

    Raises:
      ValueError: an unknown kind, or a label smoothing that it does not have.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import dpo_loss
    >>> loss = dpo_loss(jnp.array(-10.0), jnp.array(-12.0), jnp.array(-11.0), jnp.array(-11.0), beta=0.5)
    >>> print(f"{loss:.4f}")
    0.3133
    """
    if kind not in get_args(Preference):
        raise ValueError(f"kind must be one of {', '.join(get_args(Preference))}; got {kind!r}")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and kind in ("ipo", "hinge")):
        raise ValueError(f"label_smoothing must be in [0, 0.5), and 0 for {kind!r}; got {label_smoothing}")
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return jax.nn.relu(1 - beta * margin)
    right, wrong = -jax.nn.log_sigmoid(beta * margin), -jax.nn.log_sigmoid(-beta * margin)
    if kind == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def response_weights(
    chosen: Float[Array, "*batch t"],
    rejected: Float[Array, "*batch t"],
    mask: Bool[Array, "*batch t"],
    beta: float,
    worth: Worth = "advantage",
) -> tuple[Float[Array, "*batch t"], Float[Array, "*batch t"]]:
    """Weights of the responses of a person's choices: what is worth imitating, by a reward model.

    w_i = exp(A_i / β) / Σ_j exp(A_j / β) over both responses of all t choices. What a response is worth, A_i, is

    * "reward": its reward r_i (reward-weighted regression, Peters and Schaal 2007). A BTL reward is known up to a
      constant of each prompt, so this is for responses to one prompt, or to prompts of one kind.
    * "advantage": its reward beyond that of the other one to the same prompt, r_i − r_j = ±m, on which no such constant
      counts (leave-one-out baseline, arXiv 2402.14740). A good response beside another good one is worth little.

    With many responses that the reference model could have written, −Σ w_i log π(y_i) is least for the policy that is
    ∝ π_ref exp(A / β) (arXiv 2305.18290, eq. 4; advantage-weighted regression, arXiv 1910.00177). Of few, at a small β,
    it imitates little but the best one, which is milder than that policy: the number of choices counts for more than β.
    What it is for: the loss of a choice says how far two log-probabilities are to be apart, and may be met by making
    the worse response unlikely at its every token; this term says that the better one is to be written.

    Args:
      chosen: rewards of the chosen responses, in nats.
      rejected: rewards of the rejected ones.
      mask: which choices are real.
      beta: as of the policy, > 0. The smaller, the fewer responses count.
      worth: what a response is weighed by.

    Returns:
      Weights of the chosen and of the rejected responses, together 1 for each person; 0 where no choice is real.

    Raises:
      ValueError: `worth` is not one of the two.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import response_weights
    >>> rewards = jnp.array([1.0, -1.0, 9.0]), jnp.zeros(3)
    >>> for worth in ("advantage", "reward"):
    ...     chosen, rejected = response_weights(*rewards, jnp.array([True, True, False]), beta=1.0, worth=worth)
    ...     print([f"{w:.2f}" for w in chosen], [f"{w:.2f}" for w in rejected])
    ['0.44', '0.06', '0.00'] ['0.06', '0.44', '0.00']
    ['0.53', '0.07', '0.00'] ['0.20', '0.20', '0.00']
    """
    if worth not in get_args(Worth):
        raise ValueError(f"worth must be one of {', '.join(get_args(Worth))}; got {worth!r}")
    if worth == "advantage":
        chosen, rejected = chosen - rejected, rejected - chosen
    both = jnp.concatenate([chosen, rejected], axis=-1) / beta
    real = jnp.concatenate([mask, mask], axis=-1)
    # Finite also where nothing is real.
    weights = jnp.where(real, jax.nn.softmax(jnp.where(real, both, jnp.finfo(both.dtype).min), axis=-1), 0.0)
    of_chosen, of_rejected = jnp.split(weights, 2, axis=-1)
    return of_chosen, of_rejected
