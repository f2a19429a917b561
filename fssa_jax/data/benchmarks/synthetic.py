"""The paper's synthetic task: two kinds of user on y in [0, 1] (arXiv 2412.13998, section 4.1).

r₀(y) = y below ½, 2y above;  r₁(y) = y below ½, 1 − y above. Pairs are uniform, choices are noiseless,
and the two kinds disagree on half of all pairs. Hence the Bayes limit acc(k) = 1 − 2^−(k+2).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fssa_jax.types import ChoiceTable, Comparisons, Episode

KINDS = ("0", "1")
# Noiseless choices are BTL choices with rewards scaled so that σ is a step.
NOISE_FREE = 1e6


def reward(y: Float[Array, "*n"], kind: Int[Array, ""] | int) -> Float[Array, "*n"]:
    """The reward of y for a user of this kind."""
    above = jnp.where(jnp.asarray(kind) == 0, 2 * y, 1 - y)
    return jnp.where(y < 0.5, y, above)


def draw_episode(
    key: Key[Array, ""], pairs: Float[Array, "n 2"] | None = None, *, max_context: int, max_targets: int
) -> Episode:
    """A fresh user of a random kind with k ~ U{0..max_context} context choices, features (n, 1).

    Args:
      key: the episode is a function of it.
      pairs: pairs to draw from, for a fixed split; None draws them uniformly from [0, 1]².
      max_context, max_targets: numbers of pairs.
    """
    key_kind, key_k, key_y = jax.random.split(key, 3)
    kind = jax.random.randint(key_kind, (), 0, 2)
    k = jax.random.randint(key_k, (), 0, max_context + 1)
    n = max_context
    if pairs is None:
        y = jax.random.uniform(key_y, (2, n + max_targets))
    else:
        y = pairs[jax.random.randint(key_y, (n + max_targets,), 0, len(pairs))].T
    first = reward(y[0], kind) > reward(y[1], kind)
    chosen, rejected = jnp.where(first, y[0], y[1])[:, None], jnp.where(first, y[1], y[0])[:, None]
    return Episode(
        context=Comparisons(chosen[:n], rejected[:n], jnp.arange(n) < k),
        targets=Comparisons(chosen[n:], rejected[n:], jnp.ones(max_targets, bool)),
        user=kind,
        group=kind,
    )


def fresh_table(
    rng: np.random.Generator, users: int, context: int, targets: int, first_id: int
) -> tuple[np.ndarray, ChoiceTable]:
    """Values y (texts, 1) and choices of fresh users on them; the two kinds alternate.

    Users 2i and 2i + 1 are of different kinds and share their target pairs, so that steering can be scored on the pairs
    on which they disagree.
    """
    shape = ((users + 1) // 2, 2)
    ys = [rng.random((users, context, 2)), np.repeat(rng.random((shape[0], targets, 2)), 2, axis=0)[:users]]
    sizes = [users * context * 2, shape[0] * targets * 2]
    ids = [
        np.arange(sizes[0]).reshape(users, context, 2),
        np.repeat(np.arange(sizes[1]).reshape(shape[0], targets, 2), 2, axis=0)[:users] + sizes[0],
    ]
    values = np.concatenate([ys[0].reshape(-1), ys[1][::2].reshape(-1)])[:, None].astype(np.float32)
    return values, _table(ys, ids, np.arange(users) % 2, first_id)


def published_pairs(split: str) -> np.ndarray:
    """The pairs (n, 2) of one split of the published 20,000; pairs and splits follow from numpy's legacy seed 0."""
    rng = np.random.RandomState(0)
    pairs = rng.rand(20_000, 2)
    return pairs[rng.choice(["train", "val", "test"], len(pairs), p=[0.8, 0.1, 0.1]) == split]


def published_table(
    rng: np.random.Generator, pairs: np.ndarray, users: int, context: int, targets: int, first_id: int
) -> tuple[np.ndarray, ChoiceTable]:
    """Users of alternating kinds, each with context and target pairs drawn without replacement from `pairs`."""
    picks = np.stack([rng.permutation(len(pairs))[: context + targets] for _ in range(users)])
    if users > 1:  # users 2i and 2i + 1 share their targets, as in `fresh_table`
        shared = picks[: users // 2 * 2]
        shared[1::2, context:] = shared[0::2, context:]
        for row, other in zip(shared[1::2], shared[0::2], strict=True):
            free = np.setdiff1d(np.arange(len(pairs)), other[context:])
            row[:context] = rng.permutation(free)[:context]
    y, ids = pairs[picks], picks[..., None] * 2 + np.arange(2)
    values = pairs.reshape(-1, 1).astype(np.float32)
    parts = [slice(None, context), slice(context, None)]
    return values, _table([y[:, p] for p in parts], [ids[:, p] for p in parts], np.arange(users) % 2, first_id)


def people_rewards(values: np.ndarray) -> np.ndarray:
    """(texts, 2): the rewards of both kinds, scaled so that BTL choices are noiseless."""
    y = jnp.asarray(values[:, 0])
    return np.stack([np.asarray(reward(y, kind)) for kind in (0, 1)], axis=1) * NOISE_FREE


def _table(ys: list[np.ndarray], ids: list[np.ndarray], kind: np.ndarray, first_id: int) -> ChoiceTable:
    rows = max(y.shape[1] for y in ys)
    chosen = np.zeros((len(kind), 2, rows), np.int32)
    rejected = np.zeros_like(chosen)
    for pool, (y, i) in enumerate(zip(ys, ids, strict=True)):
        above = np.where(kind[:, None, None] == 0, 2 * y, 1 - y)
        r = np.where(y < 0.5, y, above)
        first = r[..., 0] > r[..., 1]
        n = y.shape[1]
        chosen[:, pool, :n] = np.where(first, i[..., 0], i[..., 1]) + first_id
        rejected[:, pool, :n] = np.where(first, i[..., 1], i[..., 0]) + first_id
    count = np.array([[ys[0].shape[1], ys[1].shape[1]]] * len(kind), np.int32)
    return ChoiceTable(chosen, rejected, count, kind.astype(np.int32))  # type: ignore[arg-type]
