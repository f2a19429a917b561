"""The factorisation that learnt texts start from explains who likes what."""

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.data.dataset import make_table
from fssa_jax.ops.factorise import factorise, observed_responses


def test_every_text_counts_once_for_a_user():
    context, target = (np.array([3, 3, 4]), np.array([1, 2, 1])), (np.array([5]), np.array([3]))
    user, text, liked = observed_responses(
        make_table([[np.stack(pool, -1) for pool in (context, target)[::turn]] for turn in (1, -1)], [0, 0])
    )
    first = sorted((int(t), int(y)) for u, t, y in zip(user, text, liked, strict=True) if u == 0)
    # Text 3 was chosen twice and rejected once: it is liked once and disliked once.
    assert first == [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 1)]
    assert (user == 0).sum() == (user == 1).sum()


def test_whatever_was_not_chosen_is_disliked():
    table = make_table([[np.array([[1, 2, 3, 4], [1, 5, 6, -1]]), np.array([[7, 8, -1, -1]])]], [0])
    _, text, liked = observed_responses(table)
    assert dict(zip(text.tolist(), liked.tolist(), strict=True)) == {t: int(t in (1, 7)) for t in range(1, 9)}


def test_two_camps_are_told_apart_and_offsets_say_what_everybody_likes():
    users, texts = 60, 24
    rng = np.random.default_rng(0)
    user, text = (x.ravel() for x in np.meshgrid(np.arange(users), np.arange(texts), indexing="ij"))
    camp = np.where(text % 3 == 2, 1, np.where((user % 2) == (text % 3), 1, 0))  # every third text is liked by all
    keep = rng.random(user.size) < 0.6
    user, text, camp = (jnp.asarray(x[keep]) for x in (user, text, camp))
    factors, offsets = factorise(jax.random.key(0), user, text, camp, users=users, texts=texts, width=4, steps=150)
    kind = np.arange(texts) % 3
    assert offsets[kind == 2].min() > offsets[kind != 2].max()
    unit = np.asarray(factors / jnp.linalg.norm(factors, axis=1, keepdims=True))
    assert (unit[kind == 0] @ unit[kind == 0].T).min() > 0.8
    assert (unit[kind == 0] @ unit[kind == 1].T).max() < -0.8
