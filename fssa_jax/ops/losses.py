"""All losses: preference losses of policies, on the smallest unit, and the neural-process losses (re-exported)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from fssa_jax.ops._checks import as_scalar, check_shapes, floats_alike, is_known
from fssa_jax.ops.neural_process import NPLoss as NPLoss
from fssa_jax.ops.neural_process import Objective as Objective
from fssa_jax.ops.neural_process import latent_roles as latent_roles
from fssa_jax.ops.neural_process import masked_mean as masked_mean
from fssa_jax.ops.neural_process import neural_process_loss as neural_process_loss

Preference = Literal["sigmoid", "ipo", "hinge", "robust"]
Worth = Literal["advantage", "reward"]


def dpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike,
    kind: Preference = "sigmoid",
    label_smoothing: ArrayLike = 0.0,
) -> Float[Array, "*batch"]:
    """The preference loss of a policy on a choice, from the log-probabilities of the two responses.

    With the margin h = [log π(y⁺) − log π_ref(y⁺)] − [log π(y⁻) − log π_ref(y⁻)] and label smoothing ε:

    | kind    | loss                                              | source                                    |
    |---------|---------------------------------------------------|-------------------------------------------|
    | sigmoid | −(1 − ε) log σ(βh) − ε log σ(−βh)                 | DPO, arXiv 2305.18290; ε > 0: conservative |
    | robust  | [−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε)    | arXiv 2403.00409                          |
    | ipo     | (h − 1 / 2β)²                                     | arXiv 2310.12036                          |
    | hinge   | max(0, 1 − βh)                                    | SLiC, arXiv 2305.10425                    |

    Args:
      chosen, rejected: log π(y | x), (*batch), in nats; divided by the numbers of tokens for a length-normalised loss.
      reference_chosen, reference_rejected: log π_ref(y | x), likewise. They do not depend on the person.
      beta: β > 0; the larger, the closer the policy stays to the reference. It may be traced.
      label_smoothing: ε in [0, ½), the assumed share of wrong choices; for sigmoid and robust only. It may be traced.

    Returns:
      One loss per choice, (*batch).

    Raises:
      ValueError: two arrays of different shapes, an unknown kind, or a β or label smoothing out of range for the kind.

    >>> from fssa_jax import dpo_loss
    >>> print(f"{dpo_loss(-10.0, -12.0, -11.0, -11.0, beta=0.5):.4f}")
    0.3133
    """
    if kind not in get_args(Preference):
        raise ValueError(f"kind must be one of {', '.join(get_args(Preference))}; got {kind!r}")
    beta, label_smoothing = as_scalar("beta", beta), as_scalar("label_smoothing", label_smoothing)
    if is_known(beta) and not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    if kind in ("ipo", "hinge") and (not is_known(label_smoothing) or label_smoothing != 0):
        raise ValueError(f"label_smoothing must be 0 for {kind!r}, got {label_smoothing}")
    if is_known(label_smoothing) and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    chosen, rejected, reference_chosen, reference_rejected = floats_alike(
        chosen=chosen, rejected=rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected
    )
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return jax.nn.relu(1 - beta * margin)
    right, wrong = -jax.nn.log_sigmoid(beta * margin), -jax.nn.log_sigmoid(-beta * margin)
    if kind == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def implicit_rewards(log_probs: ArrayLike, reference: ArrayLike, beta: ArrayLike) -> Float[Array, "*batch"]:
    """The rewards that a policy is optimal for: r(x, y) = β [log π(y | x) − log π_ref(y | x)].

    They are defined up to a constant per prompt (arXiv 2305.18290, eq. 5).

    Args:
      log_probs: log π(y | x), (*batch), in nats.
      reference: log π_ref(y | x), (*batch), in nats.
      beta: β > 0 of the policy. It may be traced.

    Returns:
      Rewards in nats, (*batch).

    Raises:
      ValueError: two arrays of different shapes.

    >>> from fssa_jax import implicit_rewards
    >>> print(implicit_rewards(-10.0, -12.0, beta=0.5))
    1.0
    """
    log_probs, reference = floats_alike(log_probs=log_probs, reference=reference)
    return as_scalar("beta", beta) * (log_probs - reference)


def soft_label_loss(
    loss: ArrayLike, reversed_loss: ArrayLike, probability: ArrayLike, share: ArrayLike
) -> Float[Array, "*batch"]:
    """The loss on a choice whose label is a mixture of the person's choice and a reward model's probability.

    (1 − s) ℓ(y⁺ ≻ y⁻) + s [p ℓ(y⁺ ≻ y⁻) + (1 − p) ℓ(y⁻ ≻ y⁺)]          (distillation, cf. arXiv 2405.19316)

    Args:
      loss: ℓ(y⁺ ≻ y⁻), (*batch), for instance from `dpo_loss`.
      reversed_loss: ℓ(y⁻ ≻ y⁺), (*batch), the same with the two responses swapped.
      probability: p(y⁺ ≻ y⁻) under the reward model, (*batch). No gradient is stopped here.
      share: s in [0, 1]. It may be traced.

    Returns:
      One loss per choice, (*batch).

    Raises:
      ValueError: two arrays of different shapes, or a share outside of [0, 1].

    >>> from fssa_jax import soft_label_loss
    >>> print(f"{soft_label_loss(1.0, 3.0, probability=0.75, share=0.5):.2f}")
    1.25
    """
    share = as_scalar("share", share)
    if is_known(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    loss, reversed_loss, probability = floats_alike(loss=loss, reversed_loss=reversed_loss, probability=probability)
    return (1 - share) * loss + share * (probability * loss + (1 - probability) * reversed_loss)


def sft_loss(
    log_probs: ArrayLike,
    tokens: ArrayLike,
    mask: Bool[ArrayLike, "*batch t"],
    weight: Float[ArrayLike, "*batch t"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean of −log π(y⁺ | x) / |y⁺| over a user's real targets: supervised fine-tuning, per token.

    Used as the regulariser of a policy in arXiv 2404.19733, eq. 1.

    Args:
      log_probs: log π(y⁺ | x) of the chosen responses, (*batch, t), in nats.
      tokens: |y⁺|, their numbers of tokens, (*batch, t), ≥ 1 where a target is real.
      mask: which targets are real.
      weight: weights of the targets; 1 each by default.

    Returns:
      One loss per user, (*batch), in nats per token; 0 where no target is real.

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import sft_loss
    >>> print(sft_loss(jnp.array([-6.0, -8.0]), jnp.array([3, 2]), jnp.array([True, True])))
    3.0
    """
    log_probs, tokens = floats_alike(log_probs=log_probs, tokens=tokens)
    check_shapes(mask=(mask, "*batch t"), log_probs=(log_probs, "*batch t"))
    # Padding has no tokens; dividing by its number must not make the gradient NaN.
    return -masked_mean(log_probs / jnp.where(mask, tokens, 1), mask, weight)


def imitation_loss(
    chosen: ArrayLike, rejected: ArrayLike, weights: tuple[ArrayLike, ArrayLike], tokens: ArrayLike
) -> Float[Array, "*batch"]:
    """Weighted imitation: −Σ_i w_i log π(y_i | x_i) / n over both responses of all choices of a user.

    Advantage-weighted regression (arXiv 1910.00177) with the weights of `response_weights`.

    Args:
      chosen, rejected: log π(y | x) of the two responses of each choice, (*batch, t), in nats.
      weights: weights of the chosen and of the rejected responses, each (*batch, t); 0 for padding.
      tokens: n, the number of tokens of a typical response, the same for all. Dividing by a response's own length
        would reduce the weight of long responses.

    Returns:
      One loss per user, (*batch), in nats per token.

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import imitation_loss
    >>> weights = jnp.array([0.75]), jnp.array([0.25])
    >>> print(imitation_loss(jnp.array([-4.0]), jnp.array([-8.0]), weights, tokens=5))
    1.0
    """
    tokens = as_scalar("tokens", tokens)
    of_chosen, of_rejected = weights
    chosen, rejected, of_chosen, of_rejected = floats_alike(
        chosen=chosen, rejected=rejected, weights_chosen=of_chosen, weights_rejected=of_rejected
    )
    check_shapes(chosen=(chosen, "*batch t"))
    return -((of_chosen * (chosen / tokens)).sum(-1) + (of_rejected * (rejected / tokens)).sum(-1))


def response_weights(
    chosen: ArrayLike,
    rejected: ArrayLike,
    mask: Bool[ArrayLike, "*batch t"],
    beta: ArrayLike,
    worth: Worth = "advantage",
) -> tuple[Float[Array, "*batch t"], Float[Array, "*batch t"]]:
    """Imitation weights of the responses of a person's choices, from a reward model.

    w_i = exp(A_i / β) / Σ_j exp(A_j / β) over both responses of all t choices. The worth of a response, A_i, is

    * "reward": its reward r_i (reward-weighted regression, Peters and Schaal 2007). A BTL reward is known up to a
      constant per prompt, so use this for responses to one prompt, or to prompts of one kind.
    * "advantage": its reward minus that of the other response to the same prompt, r_i − r_j = ±m, where the constant
      cancels (leave-one-out baseline, arXiv 2402.14740). A good response next to another good one is worth little.

    With many responses sampled from the reference model, −Σ w_i log π(y_i) is minimal for the policy
    ∝ π_ref exp(A / β) (arXiv 2305.18290, eq. 4; advantage-weighted regression, arXiv 1910.00177). With few responses
    and a small β it imitates almost only the best one, which is milder than that policy: the number of choices then
    matters more than β.

    A preference loss only sets the difference of two log-probabilities. A policy can minimise it by making the worse
    response unlikely at every token. This term makes the better response likely.

    Args:
      chosen: rewards of the chosen responses, (*batch, t), in nats.
      rejected: rewards of the rejected ones, (*batch, t).
      mask: which choices are real.
      beta: β > 0 of the policy. The smaller, the fewer responses have weight. It may be traced.
      worth: how the worth of a response is defined.

    Returns:
      Weights of the chosen and of the rejected responses, summing to 1 per person; 0 where no choice is real.

    Raises:
      ValueError: two arrays of different shapes, a β that is not positive, or `worth` is not one of the two.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import response_weights
    >>> rewards = jnp.array([1.0, -1.0, 9.0]), 0.0
    >>> for worth in ("advantage", "reward"):
    ...     chosen, rejected = response_weights(*rewards, jnp.array([True, True, False]), beta=1.0, worth=worth)
    ...     print([f"{w:.2f}" for w in chosen], [f"{w:.2f}" for w in rejected])
    ['0.44', '0.06', '0.00'] ['0.06', '0.44', '0.00']
    ['0.53', '0.07', '0.00'] ['0.20', '0.20', '0.00']
    """
    if worth not in get_args(Worth):
        raise ValueError(f"worth must be one of {', '.join(get_args(Worth))}; got {worth!r}")
    beta = as_scalar("beta", beta)
    if is_known(beta) and not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    chosen, rejected = floats_alike(chosen=chosen, rejected=rejected)
    check_shapes(mask=(mask, "*batch t"), chosen=(chosen, "*batch t"))
    mask = jnp.asarray(mask)
    if worth == "advantage":
        chosen, rejected = chosen - rejected, rejected - chosen
    both = jnp.concatenate([chosen, rejected], axis=-1) / beta
    real = jnp.concatenate([mask, mask], axis=-1)
    # Finite even if no choice is real.
    weights = jnp.where(real, jax.nn.softmax(jnp.where(real, both, jnp.finfo(both.dtype).min), axis=-1), 0.0)
    of_chosen, of_rejected = jnp.split(weights, 2, axis=-1)
    return of_chosen, of_rejected


def list_dpo_loss(
    rewards: Float[ArrayLike, "*batch r"],
    listed: Bool[ArrayLike, "*batch r"],
    probabilities: Float[ArrayLike, "*batch r"] | None = None,
    share: ArrayLike = 0.0,
) -> Float[Array, "*batch"]:
    """DPO on a choice of one among several responses, under the model of Plackett and Luce.

    −Σ_i q_i log softmax(h)_i,   q = (1 − s) · [i is chosen] + s · p                     (arXiv 2305.18290, eq. 20)

    With two responses and s = 0 it is `dpo_loss`; with s > 0 it is `soft_label_loss` of it.

    Args:
      rewards: h, implicit rewards of the responses, the chosen one first, (*batch, r), in nats.
      listed: which responses were offered.
      probabilities: p, of every response being chosen under a reward model; needed if s > 0.
      share: s in [0, 1].

    Returns:
      One loss per choice, (*batch).

    Raises:
      ValueError: shapes that do not fit together, or a share outside of [0, 1].

    >>> import jax.numpy as jnp
    >>> from fssa_jax import list_dpo_loss
    >>> print(f"{list_dpo_loss(jnp.zeros(4), jnp.ones(4, bool)):.3f}")  # log 4
    1.386
    """
    check_shapes(rewards=(rewards, "*batch r"), listed=(listed, "*batch r"))
    share = as_scalar("share", share)
    if is_known(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    rewards, listed = jnp.asarray(rewards), jnp.asarray(listed)
    log_p = jax.nn.log_softmax(jnp.where(listed, rewards, -jnp.inf), axis=-1)
    hard = -log_p[..., 0]
    if probabilities is None:
        return hard
    check_shapes(rewards=(rewards, "*batch r"), probabilities=(probabilities, "*batch r"))
    soft = -(jnp.asarray(probabilities) * jnp.where(listed, log_p, 0)).sum(-1)
    return (1 - share) * hard + share * soft


def list_response_weights(
    rewards: Float[ArrayLike, "*batch t r"],
    listed: Bool[ArrayLike, "*batch t r"],
    beta: ArrayLike,
    worth: Worth = "advantage",
) -> Float[Array, "*batch t r"]:
    """`response_weights` for choices of one among several: the advantage is over the mean of the other responses.

    Args:
      rewards: of the responses of a person's choices, (*batch, t, r), in nats.
      listed: which responses are real; none of a choice that is padding.
      beta: β > 0 of the policy.
      worth: how the worth of a response is defined.

    Returns:
      Weights that sum to 1 per person; 0 where no response is real.

    Raises:
      ValueError: shapes that do not fit together, a β that is not positive, or an unknown `worth`.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.losses import list_response_weights
    >>> weights = list_response_weights(jnp.array([[1.0, 0.0, 0.0]]), jnp.ones((1, 3), bool), beta=1.0)
    >>> print([f"{w:.2f}" for w in weights[0]])
    ['0.69', '0.15', '0.15']
    """
    if worth not in get_args(Worth):
        raise ValueError(f"worth must be one of {', '.join(get_args(Worth))}; got {worth!r}")
    check_shapes(rewards=(rewards, "*batch t r"), listed=(listed, "*batch t r"))
    beta = as_scalar("beta", beta)
    if is_known(beta) and not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    rewards, listed = jnp.asarray(rewards), jnp.asarray(listed)
    if worth == "advantage":
        real = jnp.where(listed, rewards, 0)
        others = jnp.maximum(listed.sum(-1, keepdims=True) - 1, 1).astype(rewards.dtype)
        rewards = rewards - (real.sum(-1, keepdims=True) - real) / others
    shape = rewards.shape
    flat, mask = (x.reshape(*shape[:-2], -1) for x in (rewards / beta, listed))
    weights = jax.nn.softmax(jnp.where(mask, flat, jnp.finfo(flat.dtype).min), axis=-1)
    return jnp.where(mask, weights, 0.0).reshape(shape)
