"""Reward models: antisymmetry, z reaches the predictions and the loss, tables and features agree, learnt texts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax import BayesEncoder, Comparisons, Episode, RewardModel, SetEncoder
from fssa_jax.models.context import count_repeats
from fssa_jax.tasks.reward import forward

D, TEXTS = 6, 40
BAYES = BayesEncoder(observations=("responses", "difference"))
MODELS = {
    "concat": RewardModel(encoder=SetEncoder(width=16, latent_dim=8, heads=4), width=16),
    "bilinear": RewardModel(
        encoder=SetEncoder(width=16, latent_dim=8, heads=4, inputs=("difference", "margin")),
        width=16,
        head="bilinear",
        population="linear",
    ),
    "gaussian": RewardModel(encoder=SetEncoder(width=16, latent_dim=8, heads=4, gaussian=True), width=16),
    "bayes": RewardModel(encoder=BAYES, width=16, head="bilinear", target="linear", population="mlp"),
    "dpl": RewardModel(likelihood="dpl", encoder=SetEncoder(width=16, latent_dim=8, heads=4), width=16),
}
LEARNT = RewardModel(encoder=BAYES, width=16, head="bilinear", target="none", population="linear", learnt_texts=TEXTS)


def ids_episode(seed=0, users=3, k=4, t=5):
    rng = np.random.default_rng(seed)

    def choices(n):
        ids = jnp.asarray(rng.integers(0, TEXTS, (2, users, n)))
        return Comparisons(ids[0], ids[1], jnp.ones((users, n), bool))

    zeros = jnp.zeros(users, jnp.int32)
    return Episode(choices(k), choices(t), zeros, zeros)


TABLE = jnp.asarray(np.random.default_rng(9).normal(size=(TEXTS, D)), jnp.float32)


def features_of(episode):
    look = lambda c: Comparisons(TABLE[c.chosen], TABLE[c.rejected], c.mask)  # noqa: E731
    return Episode(look(episode.context), look(episode.targets), episode.user, episode.group)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_preferences_are_antisymmetric(model):
    episode = features_of(ids_episode())
    variables = model.init(jax.random.key(0), episode)
    flipped = Comparisons(episode.targets.rejected, episode.targets.chosen, episode.targets.mask)
    there = model.apply(variables, episode)
    back = model.apply(variables, Episode(episode.context, flipped, episode.user, episode.group))
    np.testing.assert_allclose(jnp.exp(there) + jnp.exp(back), 1, atol=1e-5)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_predictions_loss_and_gradients_change_with_the_context(model):
    """Fault 7 of the published code: nothing noticed when the latent stopped reaching the model."""
    episode, other = features_of(ids_episode(0)), features_of(ids_episode(1))
    variables = model.init(jax.random.key(0), episode)
    swapped = Episode(other.context, episode.targets, episode.user, episode.group)
    assert jnp.abs(model.apply(variables, episode) - model.apply(variables, swapped)).max() > 1e-3

    def loss(params, episode):
        log_p, _, _ = model.apply({"params": params}, episode, None, None, "vpl", True, method=forward)
        return -log_p.mean()

    gradient = jax.grad(loss)(variables["params"], episode)
    encoder_gradient = sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(gradient["encoder"]))
    assert encoder_gradient > 1e-4
    assert loss(variables["params"], episode) != loss(variables["params"], swapped)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_ids_with_a_table_are_the_same_as_features(model):
    episode = ids_episode()
    variables = model.init(jax.random.key(0), episode, TABLE)
    by_id = model.apply(variables, episode, TABLE)
    repeats_differ = isinstance(model.encoder, BayesEncoder) and (count_repeats(episode.context) > 1).any()
    if not repeats_differ:
        np.testing.assert_allclose(by_id, model.apply(variables, features_of(episode)), atol=1e-5)


def test_looking_up_before_or_after_encoding_is_the_same():
    episode = ids_episode(users=2, k=2, t=2)
    variables = LEARNT.init(jax.random.key(0), episode, TABLE)
    ids = jnp.arange(TEXTS)
    whole = LEARNT.apply(variables, ids, TABLE, method="encode_responses")  # the table is not larger
    few = LEARNT.apply(variables, ids[:5], TABLE, method="encode_responses")  # the table is larger
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:5], b, atol=1e-6), whole, few)


def test_texts_that_came_after_training_have_no_learnt_part():
    episode = ids_episode()
    variables = LEARNT.init(jax.random.key(0), episode, TABLE)
    longer = jnp.concatenate([TABLE, TABLE[:1]])
    encoded = LEARNT.apply(variables, jnp.array([0, TEXTS]), longer, method="encode_responses")
    assert jnp.abs(encoded.response[0]).max() > 0
    assert not encoded.response[1].any()


def test_a_text_shown_twice_is_counted_once():
    chosen, rejected = jnp.array([[1, 1, 2, 9]]), jnp.array([[3, 4, 3, 3]])
    context = Comparisons(chosen, rejected, jnp.array([[True, True, True, False]]))
    np.testing.assert_array_equal(count_repeats(context)[0, :3], [[2, 2], [2, 1], [1, 2]])
    np.testing.assert_array_equal(count_repeats(context)[0, 3], [1, 2])


@pytest.mark.parametrize("weighted", [False, True])
def test_repeats_of_many_choices_are_counted_by_sorting(weighted, monkeypatch):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 9, (2, 3, 40))
    weight = jnp.asarray(rng.choice([0.5, 1.0], (3, 40)), jnp.float32) if weighted else None
    mask = jnp.asarray(rng.random((3, 40)) < 0.8)
    choices = Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), mask, weight=weight)
    expected = count_repeats(choices)
    monkeypatch.setattr("fssa_jax.models.context._MANY", 10)
    np.testing.assert_allclose(count_repeats(choices), expected, rtol=1e-6)


def test_text_dropout_leaves_out_embeddings_in_training_only():
    model = LEARNT.clone(text_dropout=0.5)
    episode = ids_episode()
    variables = model.init(jax.random.key(0), episode, TABLE)

    def log_p(train, seed):
        out = model.apply(
            variables, episode, TABLE, None, "vpl", train, method=forward, rngs={"dropout": jax.random.key(seed)}
        )
        return out[0]

    assert jnp.abs(log_p(True, 0) - log_p(True, 1)).max() > 1e-4
    np.testing.assert_array_equal(log_p(False, 0), log_p(False, 1))


def test_an_all_masked_row_gives_finite_losses_and_gradients():
    episode = features_of(ids_episode())
    empty = lambda c: Comparisons(c.chosen, c.rejected, jnp.zeros_like(c.mask))  # noqa: E731
    episode = Episode(empty(episode.context), empty(episode.targets), episode.user, episode.group)
    model = MODELS["bayes"]
    variables = model.init(jax.random.key(0), episode)
    value, gradient = jax.value_and_grad(lambda v: model.apply(v, episode).sum())(variables)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("model", [MODELS["bilinear"], MODELS["bayes"]], ids=["set", "bayes"])
def test_the_latent_has_the_size_that_the_model_says(model):
    episode = features_of(ids_episode())
    variables = model.init(jax.random.key(0), episode)
    z = model.apply(variables, episode.context, method="infer").mean
    assert z.shape == (3, model.latent_dim)
    specialist = model.clone(latent="group", groups=2)
    learnt = specialist.init(jax.random.key(0), episode)["params"]["group_latent"]["embedding"]
    assert learnt.shape == (2, model.latent_dim)


@pytest.mark.parametrize("shape", [None, (3, 8), (1, 3, 7)], ids=["none", "without samples", "another width"])
def test_a_latent_of_another_shape_is_named(shape):
    model, episode = MODELS["bilinear"], features_of(ids_episode())
    variables = model.init(jax.random.key(0), episode)
    z = None if shape is None else jnp.zeros(shape)
    with pytest.raises(ValueError, match=rf"z must be \('samples', 3, 8\) .* got {re.escape(str(shape))}"):
        model.apply(variables, episode.targets.chosen, z, method="rewards")


def test_learnt_texts_given_as_features_are_read_without_their_learnt_part():
    encoder = SetEncoder(width=16, latent_dim=8, heads=4)
    model = RewardModel(encoder=encoder, width=16, target="linear", learnt_texts=TEXTS)
    episode = ids_episode()
    variables = model.init(jax.random.key(0), episode, TABLE)
    variables["params"]["text_embedding"]["embedding"] = jnp.zeros((TEXTS, 16))
    by_id = model.apply(variables, episode.context, TABLE, method="infer").mean
    by_features = model.apply(variables, features_of(episode).context, method="infer").mean
    np.testing.assert_allclose(by_id, by_features, atol=1e-5)


def test_only_a_model_with_a_context_infers():
    model = RewardModel(latent="none", width=16)
    episode = features_of(ids_episode())
    variables = model.init(jax.random.key(0), episode)
    with pytest.raises(ValueError, match="'context', got 'none'"):
        model.apply(variables, episode.context, method="infer")
