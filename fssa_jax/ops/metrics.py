"""Metrics of predicted choices: accuracy, calibration, steering, intervals over users.

All targets are ordered, the chosen response first. A prediction is thus p, the probability of the choice that the
person made, and the outcome is always 1. Of choices among more than two, the probability of the most probable response
that was not chosen is needed too. Pure functions on arrays.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from fssa_jax.ops._checks import check_shapes, floats_alike

# Probabilities that differ by rounding only are ties.
_TIE = 2e-6


def preference_accuracy(log_p: ArrayLike, log_best_other: ArrayLike | None = None) -> Float[Array, "*batch"]:
    """1 where the person's choice is the most probable one, ½ at a tie, 0 otherwise.

    Args:
      log_p: log-probability of the choice that the person made, (*batch), in nats.
      log_best_other: log-probability of the most probable response that was not chosen, (*batch); log (1 − p) by
        default, for choices between two.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import preference_accuracy
    >>> print(preference_accuracy(jnp.log(jnp.array([0.9, 0.5, 0.2]))))
    [1.  0.5 0. ]
    """
    if log_best_other is None:
        (log_p,) = floats_alike(log_p=log_p)
        above = log_p + jnp.log(2.0)
    else:
        log_p, other = floats_alike(log_p=log_p, log_best_other=log_best_other)
        above = log_p - other
    return 0.5 * (1.0 + jnp.where(jnp.abs(above) < _TIE, 0.0, jnp.sign(above)))


def calibration_counts(
    p: Float[ArrayLike, "users targets"],
    mask: Bool[ArrayLike, "users targets"],
    bins: int = 15,
    best_other: Float[ArrayLike, "users targets"] | None = None,
    weight: Float[ArrayLike, "users targets"] | None = None,
) -> Float[Array, "users bins 3"]:
    """Per user and confidence bin: number of predictions, sum of confidences, sum of hits.

    The confidence is max(p, 1 − p) in [½, 1], cut into `bins` of equal width; a tie counts as half a hit. With
    `best_other`, the probability of the most probable response that was not chosen, it is the larger of the two, in
    [0, 1]. With `weight` each prediction counts by its weight. Other arguments as in `expected_calibration_error`.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import calibration_counts
    >>> print(calibration_counts(jnp.array([[0.9, 0.2]]), jnp.array([[True, True]]), bins=1).round(3))
    [[[2.  1.7 1. ]]]
    """
    check_shapes(p=(p, "users targets"), mask=(mask, "users targets"))
    p, mask = jnp.asarray(p), jnp.asarray(mask)
    log_p = jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))
    if best_other is None:
        confidence, hit = jnp.maximum(p, 1 - p), preference_accuracy(log_p)
        place = (confidence - 0.5) * 2
    else:
        check_shapes(p=(p, "users targets"), best_other=(best_other, "users targets"))
        best_other = jnp.asarray(best_other)
        confidence = place = jnp.maximum(p, best_other)
        hit = preference_accuracy(log_p, jnp.log(jnp.maximum(best_other, jnp.finfo(p.dtype).tiny)))
    index = jnp.clip((place * bins).astype(jnp.int32), 0, bins - 1)
    one_hot = jax.nn.one_hot(index, bins) * mask[..., None].astype(p.dtype)
    if weight is not None:
        check_shapes(p=(p, "users targets"), weight=(weight, "users targets"))
        one_hot = one_hot * jnp.asarray(weight)[..., None]
    values = jnp.stack([jnp.ones_like(p), confidence, hit], axis=-1)
    return jnp.einsum("utb,utv->ubv", one_hot, values)


def ece_from_counts(counts: Float[ArrayLike, "*batch bins 3"]) -> Float[Array, "*batch"]:
    """Expected calibration error from the counts of `calibration_counts`, summed over users.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import calibration_counts, ece_from_counts
    >>> counts = calibration_counts(jnp.array([[0.75, 0.75, 0.75, 0.25]]), jnp.ones((1, 4), bool))
    >>> print(ece_from_counts(counts.sum(0)))  # three of four hit, at a confidence of ¾
    0.0
    """
    check_shapes(counts=(counts, "*batch bins 3"))
    counts = jnp.asarray(counts)
    total = jnp.maximum(counts[..., 0].sum(-1), 1e-9)
    return jnp.abs(counts[..., 1] - counts[..., 2]).sum(-1) / total


def expected_calibration_error(
    p: Float[ArrayLike, "users targets"], mask: Bool[ArrayLike, "users targets"] | None = None, bins: int = 15
) -> Float[Array, ""]:
    """ECE = Σ_b (n_b / n) |mean confidence_b − accuracy_b|          (Guo et al., arXiv 1706.04599, eq. 3)

    Args:
      p: probability of the choice that the person made, in [0, 1].
      mask: which predictions count; all by default. If none does, the error is 0.
      bins: number of equal bins of the confidence max(p, 1 − p) over [½, 1].

    >>> import jax.numpy as jnp
    >>> from fssa_jax import expected_calibration_error
    >>> print(expected_calibration_error(jnp.array([[0.8, 0.8, 0.8, 0.8, 0.2]])).round(3))
    0.0
    """
    mask = jnp.ones(jnp.shape(p), bool) if mask is None else mask
    return ece_from_counts(calibration_counts(p, mask, bins).sum(0))


def steering_score(accuracy_a: ArrayLike, accuracy_b: ArrayLike) -> Float[Array, "*batch"]:
    """S = acc_A + acc_B − 1 on pairs where A and B disagree: 0 for a model that ignores the person, 1 at best.

    Args:
      accuracy_a, accuracy_b: accuracies on the choices of A and of B, as fractions (*batch); S is a fraction too.

    Raises:
      ValueError: two arrays of different shapes.

    >>> from fssa_jax import steering_score
    >>> print(steering_score(0.9, 0.7).round(3))
    0.6
    """
    accuracy_a, accuracy_b = floats_alike(accuracy_a=accuracy_a, accuracy_b=accuracy_b)
    return accuracy_a + accuracy_b - 1.0


def contested_weights(
    item: Int[ArrayLike, "users targets"],
    side: Bool[ArrayLike, "users targets"],
    mask: Bool[ArrayLike, "users targets"],
    items: int,
) -> Float[Array, "users targets"]:
    """Weights w that turn accuracies into a steering score over all items that people disagree on.

    An item is an unordered pair of responses. It is contested if each of its sides was chosen by some user. With
    w = 1 / (number of users on that side), and 0 for uncontested items, the mean over contested items of
    acc_A + acc_B − 1 is S = 2 Σ w·acc / Σ w − 1. A user who chose both sides of an item, which is a tie, takes neither:
    w = 0.

    Args:
      item: index of the pair of each target, in [0, items).
      side: which response of the pair the user chose.
      mask: which targets are real.
      items: number of items.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import contested_weights
    >>> item, side = jnp.array([[0, 1], [0, 1], [0, 1]]), jnp.array([[True, True], [False, True], [False, True]])
    >>> print(contested_weights(item, side, jnp.ones((3, 2), bool), items=2))  # all agree on item 1
    [[1.  0. ]
     [0.5 0. ]
     [0.5 0. ]]
    """
    check_shapes(item=(item, "users targets"), side=(side, "users targets"), mask=(mask, "users targets"))
    item, side, mask = jnp.asarray(item), jnp.asarray(side), jnp.asarray(mask)
    opposite = (item[:, :, None] == item[:, None]) & (side[:, :, None] != side[:, None]) & mask[:, None]
    mask &= ~opposite.any(-1)
    segment = (item * 2 + side.astype(item.dtype)).reshape(-1)
    number = jax.ops.segment_sum(mask.reshape(-1).astype(jnp.float32), segment, items * 2).reshape(items, 2)
    contested = (number > 0).all(-1)
    weight = jnp.where(contested[:, None], 1 / jnp.maximum(number, 1.0), 0.0)
    return weight.reshape(-1)[segment].reshape(item.shape) * mask.astype(jnp.float32)


def bootstrap_weights(key: Key[Array, ""], users: int, resamples: int) -> Float[Array, "resamples users"]:
    """How often each user occurs in each bootstrap resample of the users.

    >>> import jax
    >>> from fssa_jax.ops import bootstrap_weights
    >>> bootstrap_weights(jax.random.key(0), users=5, resamples=2).sum(1).tolist()
    [5.0, 5.0]
    """
    check_shapes(key=(key, ""))
    draws = jax.random.randint(key, (resamples, users), 0, users)
    return jax.vmap(lambda d: jnp.zeros(users).at[d].add(1.0))(draws)


def interval(samples: Float[ArrayLike, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The central 95 % of bootstrap samples, without NaN.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops import interval
    >>> low, high = interval(jnp.linspace(0.0, 100.0, 1001))
    >>> print(f"{low:.1f} {high:.1f}")
    2.5 97.5
    """
    check_shapes(samples=(samples, "n"))
    samples = jnp.asarray(samples)
    low, high = jnp.nanpercentile(samples, jnp.array([2.5, 97.5]))
    return low, high


def bayes_log_posterior(
    context_reward: Float[ArrayLike, "*batch n people"],
    mask: Bool[ArrayLike, "*batch n"],
    log_prior: Float[ArrayLike, " people"],
) -> Float[Array, "*batch people"]:
    """log p(u | C) of every possible person; arguments as in `bayes_log_predictive`.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.ops.metrics import bayes_log_posterior
    >>> prior = jnp.log(jnp.array([0.5, 0.5]))
    >>> p = jnp.exp(bayes_log_posterior(jnp.array([[1.0, -1.0]]), jnp.array([True]), prior))
    >>> print(f"{p[0]:.2f}")  # σ(1)
    0.73
    """
    check_shapes(
        context_reward=(context_reward, "*batch n people"), mask=(mask, "*batch n"), log_prior=(log_prior, "people")
    )
    context_reward, mask, log_prior = jnp.asarray(context_reward), jnp.asarray(mask), jnp.asarray(log_prior)
    evidence = jnp.where(mask[..., None], jax.nn.log_sigmoid(context_reward), 0).sum(-2)
    prior = log_prior.reshape((1,) * (evidence.ndim - 1) + log_prior.shape)
    return jax.nn.log_softmax(prior + evidence, axis=-1)


def bayes_log_predictive(
    context_reward: Float[ArrayLike, "*batch n people"],
    mask: Bool[ArrayLike, "*batch n"],
    target_reward: Float[ArrayLike, "*batch t people"],
    log_prior: Float[ArrayLike, " people"],
) -> Float[Array, "*batch t"]:
    """The Bayes limit: log p(choice | context) if the set of possible people is known.

    p(u | C) ∝ p(u) Π_i σ(Δr_u(i)),   p(t | C) = Σ_u p(u | C) σ(Δr_u(t))

    Args:
      context_reward: r_u(chosen) − r_u(rejected) of every context choice, for every possible person u.
      mask: which context choices are real.
      target_reward: the same for the targets.
      log_prior: log p(u).

    Returns:
      The log-probability of every target choice under the posterior mean. In expectation no model that reads the same
      context can beat it.

    Raises:
      ValueError: shapes that do not fit together.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import bayes_log_predictive
    >>> likes, dislikes = 5.0, -5.0  # two possible people; one context choice speaks for the first
    >>> context, target = jnp.array([[likes, dislikes]]), jnp.array([[likes, dislikes]])
    >>> prior = jnp.log(jnp.array([0.5, 0.5]))
    >>> for k in (False, True):
    ...     print(f"{jnp.exp(bayes_log_predictive(context, jnp.array([k]), target, prior))[0]:.2f}")
    0.50
    0.99
    """
    check_shapes(context_reward=(context_reward, "*batch n people"), target_reward=(target_reward, "*batch t people"))
    target_reward = jnp.asarray(target_reward)
    log_posterior = bayes_log_posterior(context_reward, mask, log_prior)
    return jax.nn.logsumexp(log_posterior[..., None, :] + jax.nn.log_sigmoid(target_reward), axis=-1)
