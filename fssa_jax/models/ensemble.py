"""Several reward models as one: a person's posterior is the mixture of theirs."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.rewards import RewardModel
from fssa_jax.types import Comparisons, DiagGaussian, Posterior, PyTree


class Ensemble(RewardModel):
    """M reward models r_i = s_i(y) + ⟨f_i(y), z_i⟩, averaged: which of them is right is a part of the latent.

        r(y, z) = Σ_i w_i s_i(y) + Σ_i ⟨f_i(y), z_i⟩,   z = (z_1, …, z_M),
        q(z | C) = Σ_i w_i q_i(z_i | C) Π_{j ≠ i} δ(z_j)

    Points of q are those of one model, with 0 for the others, so a predictive probability is the weighted mean of the
    models' (Bayesian model averaging; with weights of held-out people, stacking: Yao et al., Bayesian Analysis 2018).
    This is exact where their scales of s and their shares of lapses are the same; both are averaged. Then NLL is at
    most the mean of the models' NLL (Jensen). The mean of q gives the mean of their rewards. Memory and time are the
    sums of those of the models.

    The models may differ in everything but their population reward. Make one with `Ensemble.of`; its other attributes
    are those of the first model, and `target` that of the first one that reads features.

    Attributes:
      each: the models.
      shares: their weights, which sum to 1.
    """

    each: tuple[RewardModel, ...] = ()
    shares: tuple[float, ...] = ()

    def setup(self):
        if len(self.shares) != len(self.each) or not np.isclose(sum(self.shares), 1):
            raise ValueError(f"wants a share for each of {len(self.each)} models, of sum 1; got {self.shares}")
        for model in self.each:
            encoder = model.encoder
            if model.head != "bilinear" or not model.keep_population or not isinstance(encoder, BayesEncoder):
                raise ValueError("an ensemble averages models with a BayesEncoder, head 'bilinear' and keep_population")

    @classmethod
    def of(cls, models: Sequence[RewardModel], weights: Sequence[float]) -> "Ensemble":
        """An ensemble of models, with weights that are divided by their sum."""
        names = [name for name in RewardModel.__dataclass_fields__ if name not in ("parent", "name")]
        first = {name: getattr(models[0], name) for name in names}
        first["encoder"] = models[0].encoder and models[0].encoder.clone(parent=None)  # it has no parameters here
        first["target"] = next((model.target for model in models if model.target != "none"), "none")
        return cls(**first, each=tuple(models), shares=tuple(float(w) / float(sum(weights)) for w in weights))

    @property
    def sampled(self) -> bool:
        """Whether any of the latents is sampled."""
        return any(model.sampled for model in self.each)

    @property
    def latent_dim(self) -> int:
        """The sum of the sizes of the models' latents."""
        return sum(model.latent_dim for model in self.each)

    @property
    def noise_width(self) -> int:
        """That of the widest model: all read the same noise."""
        return max(model.noise_width for model in self.each)

    def lapse(self) -> Float[Array, ""] | None:
        """The mean of the models' shares of choices at random."""
        each = [model.lapse() for model in self.each]
        return None if any(one is None for one in each) else self._mean(each)

    def rewards(
        self,
        responses: Array,
        z: Float[Array, "*samples m"] | None = None,
        table: Float[Array, "texts d"] | None = None,
        train: bool = False,
        text_mask: Float[Array, " texts"] | None = None,
    ) -> Float[Array, "*out"]:
        """See `RewardModel.rewards`; without dropout."""
        if train or text_mask is not None:
            raise ValueError("the models of an ensemble are trained separately")
        if z is None or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"z must end in {self.latent_dim} for {len(self.each)} models, got {None if z is None else z.shape}"
            )
        shared, personal = [], []
        for model, part in zip(self.each, self._parts(z), strict=True):
            shared.append(model.rewards(responses, jnp.zeros_like(part[:1]), table))
            personal.append(model.rewards(responses, part, table) - shared[-1])
        return self._mean(shared) + sum(personal)

    def __call__(self, episode: Any, table: Float[Array, "texts d"] | None = None) -> Array:
        """The mean of the models' log-likelihoods of the targets. Touches every parameter."""
        return self._mean([model(episode, table) for model in self.each])

    def _read(
        self,
        context: Comparisons,
        table: Float[Array, "texts d"] | None,
        train: bool,
        text_mask: Float[Array, " texts"] | None,
        noise: Float[Array, "*batch s w"] | None,
    ) -> DiagGaussian:
        if train or text_mask is not None:
            raise ValueError("the models of an ensemble are trained separately")
        read = []
        for model in self.each:
            own = None if noise is None else noise[..., : model.noise_width]
            read.append(model.infer(context, table) if own is None else model.posterior(context, table, own))
        mean = jnp.concatenate([w * q.mean for w, q in zip(self.shares, read, strict=True)], axis=-1)
        # The variance of a mixture: that within a model, and that between it and the others, whose z is 0.
        squares = [jnp.square(q.scale) + jnp.square(q.mean) for q in read]
        square = jnp.concatenate([w * one for w, one in zip(self.shares, squares, strict=True)], axis=-1)
        scale = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0))
        if noise is None:
            return DiagGaussian(mean, scale)
        points, log_weights, start = [], [], 0
        for share, q in zip(self.shares, read, strict=True):
            width = q.points.shape[-1]
            margins = [(0, 0)] * (q.points.ndim - 1) + [(start, self.latent_dim - start - width)]
            points.append(jnp.pad(q.points, margins))
            log_weights.append(q.log_weights + float(np.log(share)))
            start += width
        lapses = [q.lapse for q in read]
        return Posterior(
            mean,
            scale,
            jnp.concatenate(points, axis=-2),
            jnp.concatenate(log_weights, axis=-1),
            self._mean([q.temperature for q in read]),
            None if any(lapse is None for lapse in lapses) else self._mean(lapses),
        )

    def _parts(self, z: Array) -> list[Array]:
        ends = np.cumsum([model.latent_dim for model in self.each])[:-1]
        return jnp.split(z, ends, axis=-1)

    def _mean(self, values: Iterable[Any]) -> Any:
        return sum((share * value for share, value in zip(self.shares, values, strict=True)), jnp.zeros(()))


def label(number: int) -> str:
    """The name of a model's parameters: flax names the modules of a tuple by its attribute and their place."""
    return f"each_{number}"


def stacked(each: Sequence[PyTree]) -> PyTree:
    """The variables of an ensemble from those of its models."""
    return {"params": {label(i): one["params"] for i, one in enumerate(each)}}


def separate(variables: PyTree) -> list[PyTree]:
    """The variables of each model; the inverse of `stacked`."""
    params = variables["params"]
    return [{"params": params[label(i)]} for i in range(len(params))]
