"""Thumbs as observations: against a threshold, or as one response that is liked or disliked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, Episode, RewardModel

TEXTS, THRESHOLDS, D, WIDTH, KINDS = 6, 2, 3, 4, 7
FEATURES = np.zeros((TEXTS + THRESHOLDS, D + THRESHOLDS), np.float32)
FEATURES[:TEXTS, :D] = np.random.default_rng(0).normal(size=(TEXTS, D))
FEATURES[TEXTS:, D:] = 1.5 * np.eye(THRESHOLDS)
THUMB = TEXTS + 1


def context(*choices: tuple[int, int]) -> Comparisons:
    ids = jnp.array(choices)[None]
    return Comparisons(ids[..., 0], ids[..., 1], jnp.ones(ids.shape[:2], bool))


@pytest.fixture(scope="module", params=["learnt texts", "features"])
def made(request):
    model = RewardModel(
        encoder=BayesEncoder(("responses",), support=KINDS),
        width=WIDTH,
        target="linear",
        head="bilinear",
        population="linear",
        learnt_texts=TEXTS + THRESHOLDS if request.param == "learnt texts" else 0,
        thresholds=THRESHOLDS,
    )
    choices = context((0, 1), (2, THUMB))
    episode = Episode(choices, choices, jnp.zeros(1, int), jnp.zeros(1, int))
    variables = model.init(jax.random.key(0), episode, jnp.asarray(FEATURES))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.4 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, moved)


def expected(model, variables, liked: dict[int, int], weights: dict[int, float] | None = None) -> np.ndarray:
    """The mean of z of a person who likes (1) or dislikes (−1) some texts, by Bayes' rule in float64."""
    encoded = model.apply(variables, jnp.arange(TEXTS), jnp.asarray(FEATURES), method="encode_responses")
    f, o = (np.asarray(x, np.float64) for x in (encoded.response, encoded.offset[:, 0]))
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"]["encoder"])
    kinds, log_p = p["prior"]["kinds"], p["prior"]["log_prior"].copy()
    for text, sign in liked.items():
        margin = p["responses_offset"] * o[text] + kinds[:, :WIDTH] @ f[text] + kinds[:, WIDTH]
        log_p -= np.exp(p["responses_log_weight"]) * np.logaddexp(0, -sign * margin)
    posterior = np.exp(log_p - log_p.max())
    return posterior / posterior.sum() @ kinds[:, :WIDTH]


@pytest.mark.parametrize(
    ("choices", "liked"),
    [
        ([(3, THUMB)], {3: 1}),
        ([(THUMB, 3)], {3: -1}),
        ([(3, THUMB), (THUMB, 4), (3, 5)], {3: 1, 4: -1, 5: -1}),
        ([(3, TEXTS), (3, THUMB)], {3: 1}),
    ],
)
def test_a_thumb_is_one_response_that_is_liked_or_disliked(made, choices, liked):
    """The threshold is not a response that the person dislikes, and two thresholds that a text passes are one like."""
    model, variables = made
    q = model.apply(variables, context(*choices), jnp.asarray(FEATURES), method="infer")
    np.testing.assert_allclose(q.mean[0], expected(model, variables, liked), atol=1e-5)
    assert np.isfinite(np.asarray(q.scale)).all()


def test_the_gradient_of_a_context_of_thumbs_is_finite(made):
    model, variables = made

    def total(params):
        q = model.apply({"params": params}, context((3, THUMB), (THUMB, 4)), jnp.asarray(FEATURES), method="infer")
        return q.mean.sum() + q.scale.sum()

    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(jax.grad(total)(variables["params"])))


def test_a_linear_model_has_a_number_and_a_direction_for_every_threshold():
    """How easily a person likes anything is a direction of the latent, whatever the text."""
    encoder = BayesEncoder(rounds=3)
    model = RewardModel(encoder=encoder, width=WIDTH, target="linear", head="bilinear", population="linear")
    choices = context((0, 1), (2, THUMB))
    episode = Episode(choices, choices, jnp.zeros(1, int), jnp.zeros(1, int))
    variables = model.init(jax.random.key(0), episode, jnp.asarray(FEATURES))

    def easily(choices):
        q = model.apply(variables, context(*choices), jnp.asarray(FEATURES), method="infer")
        likes = context(*((text, THUMB) for text in range(TEXTS)))
        return model.apply(variables, likes, q.mean[None], jnp.asarray(FEATURES), method="log_likelihood").mean()

    up, down = ([(i, THUMB)[:: 1 if liked else -1] for i in range(TEXTS)] for liked in (True, False))
    assert easily(up) > easily(down) + 0.1
