"""The neural-process encoder: a set of choices in, a distribution over the person's latent out."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fssa_jax.models.layers import MLP, MaskedSelfAttention
from fssa_jax.types import Comparisons, DiagGaussian

PairInput = Literal["chosen", "rejected", "difference", "margin"]
Aggregation = Literal["mean", "sum", "attention", "bayes"]
Observation = Literal["difference", "responses"]

# A posterior narrower than this is a point for every purpose, and its KL divergence stays finite.
_MIN_SCALE = 1e-4


class NPEncoder(nn.Module):
    """q(z | C): encode every choice, aggregate over the set, then an MLP (arXiv 2412.13998, section 3.1).

    The result does not depend on the order of the choices or on padding, and is finite for an empty
    context.

    Attributes:
      width: of the pair encodings.
      latent_dim: m, the size of z.
      pair: encoder of one choice, "linear" or "mlp" (one hidden layer).
      inputs: what the pair encoder reads of a choice. "margin" is the choice's reward difference under
        the population model: a choice against the crowd tells more.
      aggregation: "mean", "sum", "attention" (masked self-attention, then `pool`), or "bayes" (see
        `BayesAggregation`; it reads encoded responses and leaves all other settings but `latent_dim`,
        `gaussian`, `observations`, `rounds` and `support` unused).
      pool: how attention's outputs are brought together, "mean" or "sum".
      prior_choice: put one learnt pseudo-choice into every context. The mean over k + 1 then tells k
        apart and is defined for k = 0, and its norm does not grow with k.
      residual: attention with a residual connection and a norm before it.
      heads, dropout: of the attention.
      gaussian: emit N(μ, diag σ²), from which the model draws z; otherwise z is the mean, and `scale` is 0, or with
        "bayes" the posterior's all the same: what is not known of the person.
      observations, rounds, support: of "bayes".

    The published networks are pair "mlp" or "linear", inputs ("chosen", "rejected"), pool "sum", and neither
    prior_choice nor residual.

    >>> import jax, jax.numpy as jnp
    >>> from fssa_jax import Comparisons, NPEncoder
    >>> context = Comparisons(jnp.ones((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.array([[True] * 3, [False] * 3]))
    >>> encoder = NPEncoder(width=16, latent_dim=4, heads=2, gaussian=True)
    >>> variables = encoder.init(jax.random.key(0), context)
    >>> encoder.apply(variables, context).mean.shape  # the second person has chosen nothing yet
    (2, 4)
    """

    width: int = 128
    latent_dim: int = 128
    pair: Literal["linear", "mlp"] = "mlp"
    inputs: tuple[PairInput, ...] = ("chosen", "rejected")
    aggregation: Aggregation = "attention"
    pool: Literal["mean", "sum"] = "mean"
    prior_choice: bool = True
    residual: bool = True
    heads: int = 8
    dropout: float = 0.0
    gaussian: bool = False
    observations: tuple[Observation, ...] = ("difference",)
    rounds: int = 1
    support: int = 0

    @nn.compact
    def __call__(
        self,
        context: Comparisons,
        rewards: Float[Array, "*batch n 2"] | None = None,
        offsets: Float[Array, "*batch n 2"] | None = None,
        repeats: Float[Array, "*batch n 2"] | None = None,
        train: bool = False,
    ) -> DiagGaussian:
        """Reads a context.

        Args:
          context: choices with features (*batch, n, d); for "bayes" encoded responses (*batch, n, m).
          rewards: population rewards of (chosen, rejected); needed if `inputs` names "margin".
          offsets: log-odds that anybody likes (chosen, rejected); for "bayes" reading "responses" only.
          repeats: how often the context shows each response; for "bayes" only.
          train: turns dropout on.

        Returns:
          q(z | C), (*batch, m).
        """
        if self.aggregation == "bayes":
            bayes = BayesAggregation(self.observations, self.rounds, self.support, name="bayes")
            return bayes(context, rewards, offsets, repeats)
        mask = context.mask
        x = self._pair_inputs(context, rewards)
        widths = (self.width,) if self.pair == "linear" else (self.width, self.width)
        h = MLP(widths, name="pair")(x)
        if self.prior_choice:
            prior = self.param("prior_choice", nn.initializers.normal(1.0), (self.width,))
            h = jnp.concatenate([jnp.broadcast_to(prior, (*h.shape[:-2], 1, self.width)), h], axis=-2)
            mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], 1), bool), mask], axis=-1)
        pool = self.aggregation
        if self.aggregation == "attention":
            attend = MaskedSelfAttention(self.heads, self.residual, self.dropout, name="attention")
            h = attend(h, mask, deterministic=not train)
            pool = self.pool
        total = jnp.sum(jnp.where(mask[..., None], h, 0), axis=-2)
        if pool == "mean":
            total = total / jnp.maximum(mask.sum(-1), 1).astype(total.dtype)[..., None]
        out = MLP((self.width, self.latent_dim * (2 if self.gaussian else 1)), name="outer")(total)
        if not self.gaussian:
            return DiagGaussian(out, jnp.zeros_like(out))
        mean, raw = jnp.split(out, 2, axis=-1)
        return DiagGaussian(mean, jnp.maximum(jax.nn.softplus(raw), _MIN_SCALE))

    def _pair_inputs(self, context: Comparisons, rewards: Array | None) -> Float[Array, "*batch n p"]:
        parts = {
            "chosen": context.chosen,
            "rejected": context.rejected,
            "difference": context.chosen - context.rejected,
        }
        if "margin" in self.inputs:
            if rewards is None:
                raise ValueError("inputs name 'margin': the model needs a population reward")
            parts["margin"] = rewards[..., :1] - rewards[..., 1:]
        return jnp.concatenate([parts[name] for name in self.inputs], axis=-1)


class BayesAggregation(nn.Module):
    """q(z | C) by conditioning a learnt prior on the choices: Bayes' rule, in closed form.

    Every choice is read as observations of logits o + ⟨a, z⟩ being positive: of f(y⁺) − f(y⁻) being
    preferred ("difference"), and of y⁺ being liked and y⁻ disliked, each by itself ("responses": right
    where a choice means that a person agreed with one text and disagreed with the other). The offset o
    is the population's, w the weight of an observation.

    With `support` = J > 0 the prior is discrete: people are of J kinds, z₁ … z_J, with probabilities π. Then

        p(j | C) ∝ π_j Π_o σ(o + ⟨a_o, z_j⟩)^w_o,   mean Σ_j p(j | C) z_j,   variance Σ_j p(j | C) (z_j − mean)²

    is exact. The prior that is best for the data has finitely many points, whatever people are like (Kiefer and
    Wolfowitz 1956; Lindsay 1983), so J is a budget, not a belief; this is right where people are of kinds or hold
    extreme views, where a normal prior draws them to the middle.

    With `support` 0 the prior is normal, N(μ, Λ₀⁻¹), and the posterior's mode is found by Newton's method. One of
    `rounds` steps is

        g = σ(o + A z),   Λ = Λ₀ + Aᵀ diag(w g (1 − g)) A,   z ← z + Λ⁻¹ (Aᵀ w (1 − g) − Λ₀ (z − μ))

    It is Bayesian context aggregation (Volpp et al., ICLR 2021) with full covariance.

    Prior, weights w and offsets are learnt with the rest of the model; nothing is fitted to the person by
    gradient descent. Order and padding do not matter, and an empty context gives the prior.
    """

    observations: tuple[Observation, ...]
    rounds: int
    support: int = 0

    @nn.compact
    def __call__(
        self, context: Comparisons, rewards: Array | None, offsets: Array | None, repeats: Array | None
    ) -> DiagGaussian:
        m = context.chosen.shape[-1]
        observed = self._observe(context, rewards, offsets, repeats)
        mean, scale = self._of_kinds(*observed) if self.support else self._newton(*observed)
        return DiagGaussian(mean[..., :m], jnp.maximum(scale[..., :m], _MIN_SCALE))

    def _of_kinds(self, directions: Array, logits: Array, weights: Array) -> tuple[Array, Array]:
        """Mean and scale of z under a discrete prior; the last coordinate is how easily a person likes."""
        shape = (self.support, directions.shape[-1])
        kinds = self.param("kinds", nn.initializers.normal(0.3), shape)
        log_prior = self.param("log_prior", nn.initializers.zeros, (self.support,))
        of_kind = jnp.einsum("...oi,ji->...oj", directions, kinds) + logits[..., None]
        log_likelihood = jnp.einsum("...o,...oj->...j", weights, jax.nn.log_sigmoid(of_kind))
        p = jax.nn.softmax(log_likelihood + jnp.broadcast_to(log_prior, log_likelihood.shape))
        mean = p @ kinds
        variance = p @ jnp.square(kinds) - jnp.square(mean)
        return mean, jnp.sqrt(jnp.maximum(variance, _MIN_SCALE**2))

    def _newton(self, directions: Array, logits: Array, weights: Array) -> tuple[Array, Array]:
        """Mode and scale of z under a normal prior; the last coordinate is how easily a person likes."""
        n = directions.shape[-1]
        prior_mean = self.param("prior_mean", nn.initializers.zeros, (n - 1,))
        prior_precision = jnp.exp(self.param("prior_log_precision", nn.initializers.zeros, (n,)))
        batch = directions.shape[:-2]
        mean = jnp.broadcast_to(jnp.concatenate([prior_mean, jnp.zeros(1)]), (*batch, n))
        prior = jnp.broadcast_to(prior_precision, (*batch, n))
        prior_matrix = jnp.broadcast_to(jnp.diag(prior_precision), (*batch, n, n))
        z, precision = mean, prior_matrix
        for _ in range(self.rounds):
            dislike = jax.nn.sigmoid(-logits - jnp.einsum("...oi,...i->...o", directions, z))
            curvature = weights * dislike * (1 - dislike)
            precision = jnp.einsum("...oi,...oj->...ij", directions * curvature[..., None], directions)
            precision = precision + prior_matrix
            gradient = jnp.einsum("...oi,...o->...i", directions, weights * dislike)
            factor = jnp.linalg.cholesky(jax.lax.stop_gradient(precision), symmetrize_input=False)
            z = z + _solve(precision, factor, gradient - prior * (z - mean))
        return z, jnp.sqrt(_variance(precision, factor, z))

    def _observe(
        self, context: Comparisons, rewards: Array | None, offsets: Array | None, repeats: Array | None
    ) -> tuple[Float[Array, "*batch o m1"], Float[Array, "*batch o"], Float[Array, "*batch o"]]:
        """Directions, offsets and weights of all observations; padding has weight 0."""
        real = context.mask.astype(context.chosen.dtype)
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
            scale = jnp.exp(self.param(f"{kind}_log_weight", nn.initializers.zeros, ()))
            slope = self.param(f"{kind}_offset", nn.initializers.ones, ())
            for direction, logit, weight in kinds[kind]:
                directions.append(jnp.concatenate(direction, axis=-1))
                logits.append(slope * logit)
                weights.append(scale * weight)
        return jnp.concatenate(directions, -2), jnp.concatenate(logits, -1), jnp.concatenate(weights, -1)


# XLA's CPU backend (JAX 0.10) can deadlock where one program runs two LAPACK calls on large batches at the same time.
# The Newton encoder makes one factorisation per round, and each LAPACK call waits for the result of the one before.


def _solve(
    matrix: Float[Array, "*batch m m"], factor: Float[Array, "*batch m m"], vector: Float[Array, "*batch m"]
) -> Float[Array, "*batch m"]:
    """matrix⁻¹ vector for symmetric positive definite matrices, from their lower Cholesky factors.

    The gradient is one more solve with the same factor; differentiating the Cholesky factor itself costs
    several times the whole forward pass.
    """
    return jax.lax.custom_linear_solve(
        lambda x: jnp.einsum("...ij,...j->...i", matrix, x),
        vector,
        lambda _, b: jax.scipy.linalg.cho_solve((factor, True), b[..., None])[..., 0],
        symmetric=True,
    )


@jax.custom_vjp
def _variance(
    matrix: Float[Array, "*batch m m"], factor: Float[Array, "*batch m m"], mean: Float[Array, "*batch m"]
) -> Float[Array, "*batch m"]:
    """The diagonal of matrix⁻¹, from the same factors; NaN where the mean, which is computed before, is not finite.

    Its gradient with respect to the matrix is −matrix⁻¹ diag(g) matrix⁻¹, two matrix products.
    """
    return _variance_forward(matrix, factor, mean)[0]


def _variance_forward(matrix: Array, factor: Array, mean: Array) -> tuple[Array, Array]:
    del matrix
    # The right-hand side depends on the mean: the order of the two LAPACK calls is then fixed.
    one = jnp.where(jnp.isfinite(mean).all(-1), 1.0, jnp.nan)[..., None, None]
    identity = one * jnp.broadcast_to(jnp.eye(factor.shape[-1]), factor.shape)
    inverse_factor = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return jnp.sum(jnp.square(inverse_factor), axis=-2), inverse_factor


def _variance_backward(inverse_factor: Array, gradient: Array) -> tuple[Array, Array, Array]:
    inverse = jnp.einsum("...ji,...jk->...ik", inverse_factor, inverse_factor)
    of_matrix = -jnp.einsum("...ij,...j,...jk->...ik", inverse, gradient, inverse)
    return of_matrix, jnp.zeros_like(inverse_factor), jnp.zeros_like(gradient)


_variance.defvjp(_variance_forward, _variance_backward)
