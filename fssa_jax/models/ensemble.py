"""Several reward models of the same kind as one: a person's posterior is the mixture of theirs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fssa_jax.models.bayes_encoder import BayesEncoder
from fssa_jax.models.rewards import RewardModel
from fssa_jax.types import Comparisons, DiagGaussian, Posterior, PyTree

_EACH = "each"


class Ensemble(RewardModel):
    """M reward models r_i = s_i(y) + ⟨f_i(y), z_i⟩, averaged: which of them is right is a part of the latent.

        r(y, z) = (1/M) Σ_i s_i(y) + Σ_i ⟨f_i(y), z_i⟩,   z = (z_1, …, z_M),
        q(z | C) = (1/M) Σ_i q_i(z_i | C) Π_{j ≠ i} δ(z_j)

    Points of q are those of one model, with 0 for the others, so a predictive probability is the mean of the models'
    (Bayesian model averaging with equal weights). This is exact where their scales of s and their shares of lapses are
    the same; both are averaged. Then NLL is at most the mean of the models' NLL (Jensen). The mean of q gives the mean
    of their rewards. Memory and time are M times those of a model.

    The attributes are those of each model, and `members`, M. Their parameters are stacked (`stacked`, `separate`).
    """

    members: int = 2

    def setup(self):
        if self.head != "bilinear" or not self.keep_population or not isinstance(self.encoder, BayesEncoder):
            raise ValueError("an ensemble averages models with a BayesEncoder, head 'bilinear' and keep_population")
        over = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "axis_size": self.members}
        methods = {
            "rewards": {"in_axes": (None, 0, None), **over},
            "_read": {"in_axes": (None, None, None, None, None), **over},
            "lapse": {"in_axes": (), **over},
        }
        self.each = nn.vmap(RewardModel, methods=methods)(**of_member(self))

    @classmethod
    def of(cls, model: RewardModel, members: int) -> "Ensemble":
        """An ensemble of models like this one."""
        return cls(**of_member(model), members=members)

    @property
    def latent_dim(self) -> int:
        """M times the size of a model's latent."""
        return self.members * super().latent_dim

    @property
    def noise_width(self) -> int:
        """That of a model: all read the same noise."""
        return super().latent_dim + 1

    def lapse(self) -> Float[Array, ""] | None:
        """The mean of the models' shares of choices at random."""
        each = self.each.lapse()
        return None if each is None else each.mean()

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
                f"z must end in {self.latent_dim} for {self.members} models, got {None if z is None else z.shape}"
            )
        parts = jnp.stack(jnp.split(z, self.members, axis=-1))
        shared = self.each.rewards(responses, jnp.zeros_like(parts[:, :1]), table)
        personal = self.each.rewards(responses, parts, table) - shared
        return shared.mean(0) + personal.sum(0)

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
        each = self.each._read(context, table, False, None, noise)
        number = self.members
        mean = _side_by_side(each.mean) / number
        # The variance of a mixture: that within a model, and that between it and the others, whose z is 0.
        square = _side_by_side(jnp.square(each.scale) + jnp.square(each.mean)) / number
        scale = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0))
        if not isinstance(each, Posterior):
            return DiagGaussian(mean, scale)
        blocks = jnp.eye(number, dtype=mean.dtype)
        points = jnp.einsum("e...sm,ej->...esjm", each.points, blocks)
        points = points.reshape(*points.shape[:-4], number * points.shape[-3], self.latent_dim)
        log_weights = _side_by_side(each.log_weights) - float(np.log(number))
        lapse = None if each.lapse is None else each.lapse.mean(0)
        return Posterior(mean, scale, points, log_weights, each.temperature.mean(0), lapse)


def of_member(ensemble: RewardModel) -> dict[str, Any]:
    """The attributes of each model of an ensemble."""
    names = [name for name in RewardModel.__dataclass_fields__ if name not in ("parent", "name")]
    out = {name: getattr(ensemble, name) for name in names}
    return out | {"encoder": out["encoder"].clone(parent=None)}  # its parameters are those of a member


def stacked(each: list[PyTree]) -> PyTree:
    """The variables of an ensemble from those of its models."""
    return {"params": {_EACH: jax.tree.map(lambda *x: jnp.stack(x), *(one["params"] for one in each))}}


def separate(variables: PyTree) -> list[PyTree]:
    """The variables of each model; the inverse of `stacked`."""
    each = members_of(variables)
    number = len(jax.tree.leaves(each)[0])
    return [jax.tree.map(lambda x, i=i: x[i], each) for i in range(number)]


def members_of(variables: PyTree) -> PyTree:
    """The variables of the models, on a leading axis."""
    return {"params": variables["params"][_EACH]}


def _side_by_side(values: Float[Array, "members *batch m"]) -> Float[Array, "*batch all"]:
    """The last axes of all models, one after the other."""
    return jnp.concatenate(list(values), axis=-1)
