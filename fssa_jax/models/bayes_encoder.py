"""The Bayesian encoder: conditions a learnt prior over people on one person's choices."""

import math
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fssa_jax.models.context import MIN_SCALE, check_context
from fssa_jax.ops._cholesky import centred_sample, cholesky_solve, inverse_diagonal, inverse_factor
from fssa_jax.ops.choices import choice_weights, offered
from fssa_jax.ops.likelihoods import choice_log_likelihood, lapse_log_likelihood
from fssa_jax.types import Comparisons, DiagGaussian, Posterior

_LAPSE_LOGIT = -4.0  # ε = .018 before training

Observation = Literal["difference", "responses"]


class BayesEncoder(nn.Module):
    """q(z | C) by Bayes' rule, in closed form, from encoded responses f(y); z has the width of f(y).

    A choice is read as one or more binary observations, each with probability σ(o + ⟨a, z⟩):

    * "difference": y⁺ is preferred, a = f(y⁺) − f(y⁻), and o is the difference of the population's rewards. A choice of
      one among more than two has a difference a_j for each other response y_j, and is one observation, with probability
      1 / (1 + Σ_j exp(−o_j − ⟨a_j, z⟩)).
    * "responses": y⁺ is liked, a = f(y⁺), and y⁻ is disliked, a = −f(y⁻). This is right if a choice means that a
      person agreed with one text and disagreed with the other. How easily a person likes anything is one more
      coordinate of the latent. It is inferred and then dropped.

    Each kind of observation has a learnt weight w, times the choice's own, and a learnt scale of o. `DiscretePrior` and
    `NormalPrior` define how the prior is conditioned. The prior is learnt with the rest of the model. Nothing is fitted
    to a person by gradient descent. This is Bayesian context aggregation (Volpp et al., ICLR 2021) with a discrete
    prior or with full covariance.

    Attributes:
      observations: how a choice is read, one of the kinds or both.
      rounds: Newton steps of the normal prior.
      support: number of support points of the discrete prior; 0 for the normal prior.
      lapses: a share ε of observations is random, and ε is learnt: their probability is (1 − ε) p + ε / n, n the number
        of responses that were offered.
      gaussian: a model integrates z out; otherwise it uses the mean. `scale` is the posterior's in both cases.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import BayesEncoder, Comparisons
    >>> context = Comparisons(jnp.ones((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.array([[True] * 3, [False] * 3]))
    >>> encoder = BayesEncoder(rounds=3)
    >>> variables = encoder.init(jax.random.key(0), context)
    >>> q = encoder.apply(variables, context)
    >>> q.mean.shape  # as wide as the encoded responses
    (2, 5)
    >>> [f"{scale:.2f}" for scale in q.scale[:, 0]]  # the second person has chosen nothing yet: the prior
    ['0.93', '1.00']
    """

    observations: tuple[Observation, ...] = ("difference",)
    rounds: int = 1
    support: int = 0
    gaussian: bool = False
    lapses: bool = False

    @nn.compact
    def __call__(
        self,
        context: Comparisons,
        rewards: Float[Array, "*batch n r"] | None = None,
        offsets: Float[Array, "*batch n 2"] | None = None,
        repeats: Float[Array, "*batch n 2"] | None = None,
        noise: Float[Array, "*batch s m1"] | None = None,
    ) -> DiagGaussian:
        """Reads a context.

        Args:
          context: choices with encoded responses (*batch, n, m).
          rewards: population rewards of (chosen, rejected, others), in nats, for "difference"; 0 where None.
          offsets: the population's log-odds of liking (chosen, rejected), for "responses"; 0 where None.
          repeats: how often the context shows each response, for "responses"; 1 where None.
          noise: standard normal, one wider than z, for the points of the posterior.

        Returns:
          q(z | C), (*batch, m). With noise it is a `Posterior`: its points are the kinds of a discrete prior, or one
          sample of a normal posterior, with its full covariance, for each row of the noise.

        Raises:
          ValueError: shapes do not fit, an observation is unknown, or a number is out of range.
        """
        check_context(context, rewards=rewards, offsets=offsets, repeats=repeats)
        known = get_args(Observation)
        if not self.observations or set(self.observations) - set(known):
            raise ValueError(f"observations must be some of {known}, got {self.observations}")
        if "responses" in self.observations and context.others is not None:
            raise ValueError("observations 'responses' are of choices between two; wants ('difference',)")
        if self.rounds < 1 or self.support < 0:
            raise ValueError(f"wants rounds ≥ 1 and support ≥ 0, got {self.rounds} and {self.support}")
        kind, number = (DiscretePrior, self.support) if self.support else (NormalPrior, self.rounds)
        prior: Any = kind(number, name="prior")
        listed: Array | None = None
        if context.others is None:
            directions, logits, weights = self._observe(context, rewards, offsets, repeats)
        else:
            directions, logits, weights, listed = self._observe_lists(context, rewards)
        m = context.chosen.shape[-1]
        lapse = None
        if self.lapses:
            lapse = jax.nn.sigmoid(self.param("lapse_logit", nn.initializers.constant(_LAPSE_LOGIT), ()))
        q = prior(directions, logits, weights, listed, noise, lapse)
        mean, scale = q.mean[..., :m], jnp.maximum(q.scale[..., :m], MIN_SCALE)
        if noise is None:
            return DiagGaussian(mean, scale)
        if lapse is not None:
            lapse = jnp.broadcast_to(lapse, mean.shape[:-1])
        return Posterior(mean, scale, q.points[..., :m], q.log_weights, q.temperature, lapse)

    def lapse(self) -> Float[Array, ""] | None:
        """ε of an encoder with parameters; None without lapses."""
        return jax.nn.sigmoid(self.get_variable("params", "lapse_logit")) if self.lapses else None

    def _observe(
        self, context: Comparisons, rewards: Array | None, offsets: Array | None, repeats: Array | None
    ) -> tuple[Float[Array, "*batch o m1"], Float[Array, "*batch o"], Float[Array, "*batch o"]]:
        """Directions, offsets and weights of all observations; padding has weight 0.

        The last coordinate of a direction multiplies how easily a person likes anything.
        """
        real = choice_weights(context).astype(context.chosen.dtype)
        rewards = jnp.zeros((*real.shape, 2)) if rewards is None else rewards
        offsets = jnp.zeros((*real.shape, 2)) if offsets is None else offsets
        repeats = jnp.ones((*real.shape, 2)) if repeats is None else repeats
        one = jnp.ones((*real.shape, 1))
        kinds = {
            "difference": [((context.chosen - context.rejected, 0 * one), rewards[..., 0] - rewards[..., 1], real)],
            "responses": [
                ((context.chosen, one), offsets[..., 0], real / repeats[..., 0]),
                ((-context.rejected, -one), -offsets[..., 1], real / repeats[..., 1]),
            ],
        }
        directions, logits, weights = [], [], []
        for kind in self.observations:
            scale, slope = self._scale_and_slope(kind)
            for direction, logit, weight in kinds[kind]:
                directions.append(jnp.concatenate(direction, axis=-1))
                logits.append(slope * logit)
                weights.append(scale * weight)
        return jnp.concatenate(directions, -2), jnp.concatenate(logits, -1), jnp.concatenate(weights, -1)

    def _observe_lists(self, context: Comparisons, rewards: Array | None) -> tuple[Array, Array, Array, Array | None]:
        """Directions (*batch, n, 1 + a, m1), offsets, weights (*batch, n) and the offered responses of choices."""
        scale, slope = self._scale_and_slope("difference")
        against = jnp.concatenate([context.rejected[..., None, :], context.others], axis=-2)
        directions = context.chosen[..., None, :] - against
        logits = jnp.zeros(directions.shape[:-1]) if rewards is None else slope * (rewards[..., :1] - rewards[..., 1:])
        directions = jnp.concatenate([directions, jnp.zeros((*directions.shape[:-1], 1))], axis=-1)
        return directions, logits, scale * choice_weights(context).astype(directions.dtype), offered(context)

    def _scale_and_slope(self, kind: str) -> tuple[Array, Array]:
        """The learnt weight of a kind of observation, and the scale of its offsets."""
        scale = jnp.exp(self.param(f"{kind}_log_weight", nn.initializers.zeros, ()))
        return scale, self.param(f"{kind}_offset", nn.initializers.ones, ())


class DiscretePrior(nn.Module):
    """People are of J kinds, z₁ … z_J, with probabilities π. The posterior is exact:

        p(j | C) ∝ π_j Π_o σ(o + ⟨a_o, z_j⟩)^w_o,   mean Σ_j p(j | C) z_j,   variance Σ_j p(j | C) (z_j − mean)²

    The maximum-likelihood prior has finitely many points, whatever people are like (Kiefer and Wolfowitz 1956; Lindsay
    1983), so J is a budget, not an assumption. This prior suits people who fall into kinds or hold extreme views; a
    normal prior shrinks them to the middle.

    Attributes:
      support: J.
    """

    support: int

    @nn.compact
    def __call__(
        self,
        directions: Float[Array, "*observed m"],
        logits: Float[Array, "*observed"],
        weights: Float[Array, "*batch o"],
        offered: Bool[Array, "*batch o a"] | None = None,
        noise: Float[Array, "*batch s m"] | None = None,
        lapse: Float[Array, ""] | None = None,
    ) -> Posterior:
        """The posterior given observations of o + ⟨a, z⟩ with weights w; with `offered`, of lists of them.

        With `lapse` the likelihood of an observation is (1 − ε) p + ε / n.
        """
        del noise  # the points are the kinds
        kinds = self.param("kinds", nn.initializers.normal(0.3), (self.support, directions.shape[-1]))
        log_prior = self.param("log_prior", nn.initializers.zeros, (self.support,))
        of_kind = jnp.einsum("...oi,ji->...oj", directions, kinds) + logits[..., None]
        if offered is None:
            log_p = jax.nn.log_sigmoid(of_kind)
        else:
            of_kind = jnp.moveaxis(of_kind, -2, -1)  # (…, o, j, a)
            log_p = choice_log_likelihood(of_kind, jnp.broadcast_to(offered[..., None, :], of_kind.shape))
        if lapse is not None:
            number = 2 if offered is None else jnp.broadcast_to(_number(offered)[..., None], log_p.shape)
            log_p = lapse_log_likelihood(log_p, lapse, number)
        log_likelihood = jnp.einsum("...o,...oj->...j", weights, log_p)
        log_p = jax.nn.log_softmax(log_likelihood + jnp.broadcast_to(log_prior, log_likelihood.shape))
        p = jnp.exp(log_p)
        mean = p @ kinds
        scale = jnp.sqrt(jnp.maximum(p @ jnp.square(kinds) - jnp.square(mean), MIN_SCALE**2))
        points = jnp.broadcast_to(kinds, (*log_p.shape, kinds.shape[-1]))
        return Posterior(mean, scale, points, log_p, jnp.ones(log_p.shape[:-1]))


class NormalPrior(nn.Module):
    """z ~ N(μ, Λ₀⁻¹). Newton's method finds the mode of the posterior. One step is

        g = σ(o + A z),   Λ = Λ₀ + Aᵀ diag(w g (1 − g)) A,   z ← z + Λ⁻¹ (Aᵀ w (1 − g) − Λ₀ (z − μ))

    and the covariance is Λ⁻¹ of the last one. For lists, with p_j the probability of response j instead of the chosen
    one, w (1 − g) a becomes w ā, ā = Σ_j p_j a_j, and w g (1 − g) a aᵀ becomes w (Σ_j p_j a_j a_jᵀ − ā āᵀ).

    With lapses, w is multiplied in every step by the probability that the observation is none,
    (1 − ε) p / ((1 − ε) p + ε / n), as in the EM algorithm. The fixed point is the mode of the mixture. Λ takes these
    probabilities for certain, so the covariance leaves out that they are not (Louis 1982): it is too small.

    Attributes:
      rounds: number of steps.
    """

    rounds: int

    @nn.compact
    def __call__(
        self,
        directions: Float[Array, "*observed m"],
        logits: Float[Array, "*observed"],
        weights: Float[Array, "*batch o"],
        offered: Bool[Array, "*batch o a"] | None = None,
        noise: Float[Array, "*batch s m"] | None = None,
        lapse: Float[Array, ""] | None = None,
    ) -> Posterior:
        """The posterior given observations of o + ⟨a, z⟩ with weights w; with `offered`, of lists of them.

        Its mean is the mode. Without noise its only point is the mode. `lapse` is ε.
        """
        m = directions.shape[-1]
        # The prior mean of the last coordinate is 0: the population's offsets include it.
        prior_mean = self.param("mean", nn.initializers.zeros, (m - 1,))
        prior_precision = jnp.exp(self.param("log_precision", nn.initializers.zeros, (m,)))
        batch = weights.shape[:-1]
        mean = jnp.broadcast_to(jnp.concatenate([prior_mean, jnp.zeros(1)]), (*batch, m))
        prior = jnp.broadcast_to(prior_precision, (*batch, m))
        prior_matrix = jnp.broadcast_to(jnp.diag(prior_precision), (*batch, m, m))
        z, precision = mean, prior_matrix
        for _ in range(self.rounds):
            if offered is None:
                margins = logits + jnp.einsum("...oi,...i->...o", directions, z)
                dislike, w = jax.nn.sigmoid(-margins), weights
                if lapse is not None:
                    w = weights * _meant(jax.nn.log_sigmoid(margins), lapse, 2)
                curvature = w * dislike * (1 - dislike)
                precision = jnp.einsum("...oi,...oj->...ij", directions * curvature[..., None], directions)
                gradient = jnp.einsum("...oi,...o->...i", directions, w * dislike)
            else:
                gradient, precision = _list_terms(directions, logits, weights, offered, z, lapse)
            precision = precision + prior_matrix
            factor = jnp.linalg.cholesky(jax.lax.stop_gradient(precision), symmetrize_input=False)
            z = z + cholesky_solve(precision, factor, gradient - prior * (z - mean))
        inverse = inverse_factor(factor, z)
        scale, points = jnp.sqrt(inverse_diagonal(precision, inverse)), z[..., None, :]
        if noise is not None:
            points = points + centred_sample(precision, inverse, noise)
        samples = points.shape[-2]
        return Posterior(z, scale, points, jnp.full((*batch, samples), -math.log(samples)), jnp.ones(batch))


def _number(offered: Bool[Array, "*batch o a"]) -> Float[Array, "*batch o"]:
    """How many responses were offered, the chosen one among them."""
    return 1 + offered.sum(-1, dtype=jnp.float32)


def _meant(log_p: Array, lapse: Array, number: Any) -> Array:
    """The probability that a choice of log-probability log_p was no lapse."""
    return jnp.exp(jnp.log1p(-lapse) + log_p - lapse_log_likelihood(log_p, lapse, number))


def _list_terms(
    directions: Float[Array, "*batch o a m"],
    logits: Float[Array, "*batch o a"],
    weights: Float[Array, "*batch o"],
    offered: Bool[Array, "*batch o a"],
    z: Float[Array, "*batch m"],
    lapse: Float[Array, ""] | None,
) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m m"]]:
    """Gradient of the log-likelihood of choices among several, and its negative Hessian, without the choices that are
    lapses."""
    margins = logits + jnp.einsum("...oai,...i->...oa", directions, z)
    log_p = choice_log_likelihood(margins, offered)
    if lapse is not None:
        weights = weights * _meant(log_p, lapse, _number(offered))
    # Masked twice: the gradient of an infinite exponential would be NaN.
    p = jnp.where(offered, jnp.exp(log_p[..., None] - jnp.where(offered, margins, 0)), 0)
    mean = jnp.einsum("...oa,...oai->...oi", p, directions)
    # As products of matrices (all responses, m), which is faster than one product of four arrays.
    flat = directions.reshape(*directions.shape[:-3], -1, directions.shape[-1])
    weighted = flat * (weights[..., None] * p).reshape(*flat.shape[:-1], 1)
    precision = jnp.einsum("...oi,...oj->...ij", weighted, flat)
    shared = jnp.einsum("...oi,...oj->...ij", weights[..., None] * mean, mean)
    return jnp.einsum("...o,...oi->...i", weights, mean), precision - shared
