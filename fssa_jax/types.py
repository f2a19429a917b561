"""The frozen pytrees that all rooms share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

# jax.tree.map builds these classes with any leaves: arrays, tracers, shapes, shardings. The docstrings state the shape
# of each array, and functions check it where they take one.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Comparisons:
    """n choices of one user, the chosen response first.

    `chosen` and `rejected` hold features (*batch, n, d), or ids of texts (*batch, n) that are still to
    be looked up in a feature table. Rows where `mask` (*batch, n) is False are padding and never count.
    There is no "choice" array: the order carries the choice.

    In choices of one among more than two, `others` holds the further responses that were not chosen, (*batch, n, a, d)
    or (*batch, n, a), and `listed` (*batch, n, a) which of them are real. Both are None for choices between two.

    `weight` (*batch, n) is the weight of each choice in likelihoods and means; None for 1. The two halves of a tie have
    ½ each.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons
    >>> Comparisons(chosen=jnp.ones((5, 8)), rejected=jnp.zeros((5, 8)), mask=jnp.arange(5) < 3).mask.sum().item()
    3
    """

    chosen: Leaf
    rejected: Leaf
    mask: Leaf
    others: Leaf = None
    listed: Leaf = None
    weight: Leaf = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Episode:
    """One user's task: read the context, predict the targets. A batch has a leading axis on every leaf.

    `user` and `group` (*batch) index the user and the user's group in the table that the episode was drawn from.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import Comparisons, Episode
    >>> choices = Comparisons(jnp.ones((5, 8)), jnp.zeros((5, 8)), jnp.ones(5, bool))
    >>> Episode(context=choices, targets=choices, user=jnp.array(0), group=jnp.array(0)).context.chosen.shape
    (5, 8)
    """

    context: Comparisons
    targets: Comparisons
    user: Leaf
    group: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagGaussian:
    """A normal distribution with diagonal covariance: `mean` and `scale`, the standard deviation, (*batch, m).

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian
    >>> DiagGaussian(mean=jnp.zeros(16), scale=jnp.ones(16)).mean.shape
    (16,)
    """

    mean: Leaf
    scale: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior(DiagGaussian):
    """A posterior over z as weighted points, which need not be normal or diagonal.

    E[g(z) | C] ≈ Σ_s w_s g(z_s): `points` (*batch, samples, m) and log w, `log_weights` (*batch, samples). `mean` and
    `scale` are those of the coordinates. Predictive probabilities are of rewards times `temperature` (*batch), which is
    1 unless a calibration was fitted. A share `lapse` (*batch) of choices is at random; None is 0.

    >>> import jax.numpy as jnp
    >>> from fssa_jax.types import Posterior
    >>> two = jnp.array([[-1.0], [1.0]])
    >>> q = Posterior(jnp.zeros(1), jnp.ones(1), points=two, log_weights=jnp.log(jnp.full(2, 0.5)), temperature=1.0)
    >>> (jnp.exp(q.log_weights) @ q.points).tolist()
    [0.0]
    """

    points: Leaf
    log_weights: Leaf
    temperature: Leaf
    lapse: Leaf | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChoiceTable:
    """All choices of a set of users as ids of texts, padded to a rectangle.

    Axis 1 is the pool: 0 context, 1 target. A user's two pools share no text, so a context from one pool never shows
    the texts of the other. `chosen` and `rejected` are (users, 2, rows) integers, `count` (users, 2) is the number of
    real rows per pool, `group` is (users,). In choices of one among more than two, `others` (users, 2, rows, a) holds
    the further responses, −1 where there is none; it is None for choices between two. `weight` (users, 2, rows) is the
    weight of every row, None for 1; a tie that is kept is two rows, one each way, of weight ½.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import ChoiceTable
    >>> ids = jnp.arange(12).reshape(2, 2, 3)  # two users, two pools, three choices
    >>> table = ChoiceTable(ids, ids + 100, count=jnp.array([[3, 2], [1, 0]]), group=jnp.zeros(2, int))
    >>> table.mask[0].tolist()
    [[True, True, True], [True, True, False]]
    """

    chosen: Leaf
    rejected: Leaf
    count: Leaf
    group: Leaf
    others: Leaf = None
    weight: Leaf = None

    @property
    def mask(self) -> Leaf:
        """(users, 2, rows) which rows are real."""
        return jnp.arange(self.chosen.shape[2])[None, None] < self.count[..., None]


PyTree = Any
