"""Log-likelihoods given rewards: Bradley-Terry-Luce, its distributional variant, Plackett-Luce, thumbs, ratings."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from fssa_jax.ops._checks import check_shapes, floats_alike

Link = Literal["probit", "logistic", "logistic_published"]

# σ(ct) and Φ(t) have the same slope at 0 for c = √(8/π); the published code uses √(2π).
_SLOPE_MATCHED = (8 / jnp.pi) ** 0.5
_SLOPE_PUBLISHED = (2 * jnp.pi) ** 0.5

# Beyond these the probabilities are 0 or 1 in float32; the bounds keep values and gradients finite.
_MAX_BTL_DIFFERENCE = 1e30
_MAX_DPL_DIFFERENCE = 1e6
_MIN_DPL_VARIANCE = 1e-8
_MIN_LAPSE = 1e-12


def btl_log_likelihood(chosen: ArrayLike, rejected: ArrayLike) -> Float[Array, "*batch"]:
    """Log-probability of a choice under the Bradley-Terry-Luce model.

    log p(y⁺ ≻ y⁻ | x) = log σ(r(x, y⁺) − r(x, y⁻))                        (arXiv 2412.13998, section 2)

    Args:
      chosen: rewards of the chosen responses, (*batch), in nats.
      rejected: rewards of the rejected responses, (*batch). Either may be a number.

    Returns:
      One log-probability per choice, (*batch). Finite, with finite gradients, for any finite rewards.

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import btl_log_likelihood
    >>> p = jnp.exp(btl_log_likelihood(jnp.array([0.0, 2.0]), 0.0))
    >>> print([f"{x:.3f}" for x in p])
    ['0.500', '0.881']
    """
    chosen, rejected = floats_alike(chosen=chosen, rejected=rejected)
    difference = jnp.clip(chosen - rejected, -_MAX_BTL_DIFFERENCE, _MAX_BTL_DIFFERENCE)
    return jax.nn.log_sigmoid(difference)


def choice_log_likelihood(
    margins: Float[ArrayLike, "*batch a"], listed: Bool[ArrayLike, "*batch a"] | None = None
) -> Float[Array, "*batch"]:
    """Log-probability of choosing one of several responses, under the model of Plackett and Luce.

    log p(y⁺ | y⁺, y₁ … y_a) = −log (1 + Σ_j exp(−(r(y⁺) − r(y_j))))       (Luce 1959; Plackett 1975, first choice)

    With a = 1 it is `btl_log_likelihood`. It is one observation, not a independent ones.

    Args:
      margins: r(y⁺) − r(y_j) for every response that was not chosen, (*batch, a), in nats.
      listed: which of them were offered; all by default.

    Returns:
      One log-probability per choice, (*batch).

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import choice_log_likelihood
    >>> print(f"{jnp.exp(choice_log_likelihood(jnp.zeros(3))):.2f}")  # one of four that are alike
    0.25
    """
    if listed is not None:
        check_shapes(margins=(margins, "*batch a"), listed=(listed, "*batch a"))
    (margins,) = floats_alike(margins=margins)
    margins = jnp.clip(margins, -_MAX_BTL_DIFFERENCE, _MAX_BTL_DIFFERENCE)
    if margins.shape[-1] == 1 and listed is None:
        return jax.nn.log_sigmoid(margins[..., 0])
    against = -margins if listed is None else jnp.where(listed, -margins, -jnp.inf)
    return -jnp.logaddexp(0.0, jax.nn.logsumexp(against, axis=-1))


def lapse_log_likelihood(log_p: ArrayLike, lapse: ArrayLike, number: ArrayLike = 2) -> Float[Array, "*batch"]:
    """Log-probability of a choice by a person who sometimes chooses at random.

    log p = log((1 − ε) p(y⁺) + ε / n)                    (lapse rate of a psychometric function; Wichmann & Hill 2001)

    No choice is less probable than ε / n, so a single wrong click is limited in what it says about a person.

    Args:
      log_p: log-probability of each choice without lapses, (*batch), in nats. Any argument may be a number.
      lapse: ε, the share of choices at random, from 0 to 1, (*batch).
      number: n, how many responses were offered, (*batch).

    Returns:
      One log-probability per choice, (*batch), in nats. With ε = 0 it is log_p.

    Raises:
      ValueError: two arrays of different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import lapse_log_likelihood
    >>> print(f"{jnp.exp(lapse_log_likelihood(-100.0, 0.04)):.2f}")  # against a taste that is sure
    0.02
    """
    log_p, lapse, number = floats_alike(log_p=log_p, lapse=lapse, number=number)
    at_random = jnp.where(lapse > 0, jnp.log(jnp.maximum(lapse, _MIN_LAPSE) / number), -jnp.inf)
    return jnp.logaddexp(jnp.log1p(-lapse) + log_p, at_random)


def thumb_log_likelihood(
    reward: ArrayLike, threshold: ArrayLike, up: Bool[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of a thumb: a text is liked if it is chosen over a threshold.

    log p(up) = log σ(r(x, y) − c),   log p(down) = log σ(c − r(x, y))     (Rasch 1960; Bradley-Terry-Luce against c)

    Args:
      reward: r of the texts, (*batch), in nats.
      threshold: c, in nats, (*batch) or a number. It may differ between people: how easily each likes anything.
      up: whether the text is liked, (*batch).

    Returns:
      One log-probability per thumb, (*batch), in nats. Finite, with finite gradients, for any finite rewards.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import thumb_log_likelihood
    >>> p = jnp.exp(thumb_log_likelihood(jnp.array([2.0, 2.0]), 0.0, jnp.array([True, False])))
    >>> print([f"{x:.3f}" for x in p])
    ['0.881', '0.119']
    """
    reward, threshold = floats_alike(reward=reward, threshold=threshold)
    check_shapes(reward=(reward, "*batch"), up=(up, "*batch"))
    sign = jnp.where(up, 1, -1).astype(reward.dtype)
    return btl_log_likelihood(sign * reward, sign * threshold)


def rating_log_likelihood(
    reward: Float[ArrayLike, "*batch"], thresholds: Float[ArrayLike, "*batch l"], rating: Int[ArrayLike, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of a rating on levels 1 … L, each reached by passing one more threshold.

    p(j) = Π_{i<j} σ(r(x, y) − c_i) · σ(c_j − r(x, y))^[j<L]         (sequential logit; Tutz 1990, continuation ratios)

    It is a product of choices between the text and thresholds, so a rating of j is min(j, L − 1) observations. The
    thresholds need not be in order. With L = 2 it is `thumb_log_likelihood`.

    Args:
      reward: r of the texts, (*batch), in nats.
      thresholds: c_1 … c_{L−1}, (*batch, L − 1), in nats.
      rating: the level, from 1 to L, (*batch). Other numbers are not checked: they count as the nearest level.

    Returns:
      One log-probability per rating, (*batch), in nats. Over the levels the probabilities sum to 1.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import rating_log_likelihood
    >>> three = jnp.exp(rating_log_likelihood(jnp.zeros(3), jnp.zeros((3, 2)), jnp.array([1, 2, 3])))
    >>> print([f"{x:.2f}" for x in three])
    ['0.50', '0.25', '0.25']
    """
    check_shapes(reward=(reward, "*batch"), thresholds=(thresholds, "*batch l"), rating=(rating, "*batch"))
    reward, thresholds = jnp.asarray(reward)[..., None], jnp.asarray(thresholds)
    number = jnp.arange(1, thresholds.shape[-1] + 1).reshape((1,) * (thresholds.ndim - 1) + (-1,))
    level = jnp.maximum(jnp.asarray(rating), 1)[..., None]
    passes = number < level
    log_p = thumb_log_likelihood(jnp.broadcast_to(reward, thresholds.shape), thresholds, passes)
    return jnp.where(number <= level, log_p, 0).sum(-1)


def dpl_log_likelihood(
    chosen_mean: ArrayLike,
    chosen_scale: ArrayLike,
    rejected_mean: ArrayLike,
    rejected_scale: ArrayLike,
    link: Link = "probit",
) -> Float[Array, "*batch"]:
    """Log-probability of a choice when every response has a normal distribution of rewards.

    log p(y⁺ ≻ y⁻ | x) = log Φ(t),   t = (μ⁺ − μ⁻) / √(s⁺² + s⁻²)          (arXiv 2312.08358, section 3)

    Args:
      chosen_mean, rejected_mean: means of the rewards, (*batch), in nats. Any argument may be a number.
      chosen_scale, rejected_scale: standard deviations of the rewards, (*batch), ≥ 0.
      link: "probit" is the exact log Φ(t); "logistic" is log σ(√(8/π) t), within .018 of Φ;
        "logistic_published" is log σ(√(2π) t) of the published code, off by up to .095.

    Returns:
      One log-probability per choice, (*batch). Finite, with finite gradients, also at zero scales.

    Raises:
      ValueError: the link is unknown, or two arrays have different shapes.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import dpl_log_likelihood
    >>> print(f"{jnp.exp(dpl_log_likelihood(2.0, 1.0, 0.0, 1.0)):.3f}")
    0.921
    """
    if link not in get_args(Link):
        raise ValueError(f"link must be one of {', '.join(get_args(Link))}; got {link!r}")
    chosen_mean, chosen_scale, rejected_mean, rejected_scale = floats_alike(
        chosen_mean=chosen_mean, chosen_scale=chosen_scale, rejected_mean=rejected_mean, rejected_scale=rejected_scale
    )
    difference = jnp.clip(chosen_mean - rejected_mean, -_MAX_DPL_DIFFERENCE, _MAX_DPL_DIFFERENCE)
    variance = jnp.maximum(chosen_scale**2 + rejected_scale**2, _MIN_DPL_VARIANCE)
    t = difference * jax.lax.rsqrt(variance)
    if link == "probit":
        return jax.scipy.stats.norm.logcdf(t)
    return jax.nn.log_sigmoid((_SLOPE_MATCHED if link == "logistic" else _SLOPE_PUBLISHED) * t)
