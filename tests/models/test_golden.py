"""The published networks, heads, losses and train steps, reproduced as named settings (tolerance 1e-5)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fssa_jax import btl_log_likelihood, dpl_log_likelihood, gaussian_kl, gaussian_sample, neural_process_loss
from fssa_jax.config import AdamW
from fssa_jax.models.layers import MLP
from fssa_jax.models.reward_heads import ConcatHead
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.tasks.reward import forward
from fssa_jax.train.state import make_optimizer
from fssa_jax.types import Comparisons, DiagGaussian, Episode

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
WIDTH = 32


def load(name):
    return dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))


def by_choice(pairs, choices):
    """(B, n, 2, d) and 0/1 → chosen first."""
    index = choices[..., None].astype(int)
    chosen = np.take_along_axis(pairs, index, axis=2)[:, :, 0]
    rejected = np.take_along_axis(pairs, 1 - index, axis=2)[:, :, 0]
    return Comparisons(jnp.asarray(chosen), jnp.asarray(rejected), jnp.ones(pairs.shape[:2], bool))


def dense(params, name, bias=True):
    out = {"kernel": jnp.asarray(params[f"{name}.weight"].T)}
    return {**out, "bias": jnp.asarray(params[f"{name}.bias"])} if bias else out


def mlp(params, name, layers):
    return {f"dense_{i}": dense(params, f"{name}.net.{2 * i}") for i in range(layers)}


def encoder_params(params, pair, aggregation, prefix=""):
    inner = f"{prefix}inner_encoder"
    out = {
        "pair": {"dense_0": dense(params, inner)} if pair == "linear" else mlp(params, inner, 2),
        "outer": mlp(params, f"{prefix}outer_encoder", 2),
    }
    if aggregation == "attention":
        weights = np.split(params[f"{prefix}self_attention.in_proj_weight"], 3)
        biases = np.split(params[f"{prefix}self_attention.in_proj_bias"], 3)
        out["attention"] = {
            name: {"kernel": jnp.asarray(w.T), "bias": jnp.asarray(b)}
            for name, w, b in zip(("query", "key", "value"), weights, biases, strict=True)
        } | {"out": dense(params, f"{prefix}self_attention.out_proj")}
    return out


def published_encoder(pair, aggregation, gaussian):
    return SetEncoder(
        width=WIDTH,
        latent_dim=WIDTH,
        pair=pair,
        aggregation=aggregation,
        pool="sum",
        prior_choice=False,
        residual=False,
        gaussian=gaussian,
    )


def params_of(arrays, kind="param"):
    return {key.split("/", 1)[1]: value for key, value in arrays.items() if key.startswith(f"{kind}/")}


@pytest.mark.parametrize("latent", ["det", "latent"])
@pytest.mark.parametrize("aggregation", ["mean", "sum", "self-attention"])
@pytest.mark.parametrize("pair", ["linear", "mlp"])
def test_context_encoder(pair, aggregation, latent):
    arrays = load(f"context_encoder__{pair}__{aggregation}__{latent}")
    ours = {"self-attention": "attention"}.get(aggregation, aggregation)
    encoder = published_encoder(pair, ours, latent == "latent")
    variables = {"params": encoder_params(params_of(arrays), pair, ours)}
    context = by_choice(arrays["in/pairs_C"], arrays["in/choices_C"])
    targets = by_choice(arrays["in/pairs_T"], arrays["in/choices_T"])
    q = encoder.apply(variables, context)
    first = jax.tree.map(lambda x: x[:, :1], context)
    one = encoder.apply(variables, first)
    if latent == "det":
        np.testing.assert_allclose(q.mean, arrays["out/z_C"][0], **TOLERANCE)
        np.testing.assert_allclose(one.mean, arrays["out/encoded_one_pair"], **TOLERANCE)
        assert not q.scale.any()
    else:
        q_targets = encoder.apply(variables, targets)
        np.testing.assert_allclose(q.mean, arrays["out/mean_C"], **TOLERANCE)
        np.testing.assert_allclose(q.scale, arrays["out/scale_C"], **TOLERANCE)
        np.testing.assert_allclose(q_targets.mean, arrays["out/mean_T"], **TOLERANCE)
        np.testing.assert_allclose(one.mean, arrays["out/encoded_one_pair"][:, :WIDTH], **TOLERANCE)
        z = gaussian_sample(q, jnp.asarray(arrays["out/eps"]))
        np.testing.assert_allclose(z, arrays["out/z_sampled"], atol=1e-5)
        np.testing.assert_allclose(gaussian_kl(q, q_targets), arrays["out/kl_C_T"], rtol=1e-5)
    empty = encoder.apply(variables, Comparisons(first.chosen, first.rejected, jnp.zeros((3, 1), bool)))
    assert jnp.isfinite(empty.mean).all()
    if aggregation != "mean":  # the published mean of nothing is NaN; ours is the mean of nothing, 0
        np.testing.assert_allclose(empty.mean, arrays["out/encoded_empty_context"][:, :WIDTH], **TOLERANCE)


def test_target_encoder():
    arrays = load("target_encoder__mlp")
    variables = {"params": mlp(params_of(arrays), "inner_encoder", 2)}
    out = MLP((WIDTH, WIDTH)).apply(variables, jnp.asarray(arrays["in/pairs_T"]))
    np.testing.assert_allclose(out, arrays["out/encoded"], **TOLERANCE)


def head_params(params, prefix, latent):
    weight = params[f"{prefix}net.0.weight"].T
    out = {
        "response": {"kernel": jnp.asarray(weight[:WIDTH])},
        "norm": {
            "scale": jnp.asarray(params[f"{prefix}net.1.weight"]),
            "bias": jnp.asarray(params[f"{prefix}net.1.bias"]),
        },
        "out": {"kernel": jnp.asarray(params[f"{prefix}net.3.weight"].T)},
    }
    if latent:
        out["latent"] = {"kernel": jnp.asarray(weight[WIDTH:])}
    return out


def head_stats(params, prefix):
    return {
        "norm": {
            "mean": jnp.asarray(params[f"{prefix}net.1.running_mean"]),
            "var": jnp.asarray(params[f"{prefix}net.1.running_var"]),
        }
    }


def test_reward_decoder():
    arrays = load("reward_decoder")
    params = params_of(arrays)
    head = ConcatHead(WIDTH, norm="batch")
    variables = {"params": head_params(params, "decoder.", True), "batch_stats": head_stats(params, "decoder.")}
    encoded = jnp.asarray(arrays["in/encoded_pairs_T"].reshape(3, 14, WIDTH))
    z = jnp.asarray(arrays["in/z_C"])
    shape = arrays["out/rewards_eval"].shape
    evaluated = head.apply(variables, encoded, z, False)
    np.testing.assert_allclose(evaluated.reshape(shape), arrays["out/rewards_eval"], **TOLERANCE)
    trained, updated = head.apply(variables, encoded, z, True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained.reshape(shape), arrays["out/rewards_train"], **TOLERANCE)
    stats = updated["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], arrays["out/running_mean_after_train"], **TOLERANCE)
    np.testing.assert_allclose(stats["var"], arrays["out/running_var_after_train"], **TOLERANCE)


def test_btl_head():
    arrays = load("head_btl")
    a, b = jnp.moveaxis(jnp.asarray(arrays["in/rewards"][..., 0]), -1, 0)
    ours = jnp.stack([btl_log_likelihood(a, b), btl_log_likelihood(b, a)], -1)
    np.testing.assert_allclose(ours, arrays["out/logp_choices"], **TOLERANCE)


def test_dpl_head_with_the_published_link():
    arrays = load("head_dpl")
    (mean_a, std_a), (mean_b, std_b) = (
        jnp.moveaxis(jnp.asarray(arrays["in/rewards_mean_std"][..., i, :]), -1, 0) for i in (0, 1)
    )
    link = "logistic_published"
    ours = [
        dpl_log_likelihood(mean_a, std_a, mean_b, std_b, link),
        dpl_log_likelihood(mean_b, std_b, mean_a, std_a, link),
    ]
    np.testing.assert_allclose(jnp.stack(ours, -1), arrays["out/logp_choices"], **TOLERANCE)


def test_reward_loss_and_its_gradient():
    arrays = load("reward_loss")
    choice = jnp.broadcast_to(jnp.asarray(arrays["in/choices"])[None], (2, 3, 7, 1))
    q_context, q_targets = (
        DiagGaussian(jnp.asarray(arrays[f"in/mean_{s}"]), jnp.asarray(arrays[f"in/scale_{s}"])) for s in "CT"
    )

    def loss(logp, q=q_context):
        # The published loss normalises over both choices once more: the same value, another gradient.
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logp), choice, axis=-1)[..., 0]
        mask = jnp.ones((3, 7), bool)
        terms = jax.vmap(neural_process_loss, in_axes=(1, 0, 0, 0, None))(
            chosen, mask, q, q_targets if q is not None else None, float(arrays["in/beta_kl"])
        )
        return terms.loss.mean(), terms

    (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(arrays["in/logp_choices"]))
    np.testing.assert_allclose(value, arrays["out/loss"], rtol=1e-5)
    np.testing.assert_allclose(terms.nll.mean(), arrays["out/negative_ll"], rtol=1e-5)
    np.testing.assert_allclose(terms.kl.mean(), arrays["out/kl_z"], rtol=1e-5)
    np.testing.assert_allclose(gradient, arrays["out/grad_logp_choices"], **TOLERANCE)
    without, _ = loss(jnp.asarray(arrays["in/logp_choices"]), None)
    np.testing.assert_allclose(without, arrays["out/loss_without_latents"], rtol=1e-5)


def model_of(name):
    if name == "nppl_attn_det":
        return RewardModel(encoder=published_encoder("linear", "attention", False), width=WIDTH, norm="batch")
    kind = "dpl" if name == "dpl" else "btl"
    return RewardModel(likelihood=kind, link="logistic_published", latent="none", width=WIDTH, norm="batch")


def model_params(params, name):
    if name == "nppl_attn_det":
        return {
            "encoder": encoder_params(params, "linear", "attention", "model.context_encoder."),
            "target_encoder": mlp(params, "model.target_encoder.inner_encoder", 2),
            "reward_head": head_params(params, "model.decoder.decoder.", True),
        }
    encoder = mlp(params, "model.target_encoder.inner_encoder", 2)
    return {"population_reward": {"encoder": encoder, "head": head_params(params, "model.decoder.", False)}}


def model_stats(params, name):
    if name == "nppl_attn_det":
        return {"reward_head": head_stats(params, "model.decoder.decoder.")}
    return {"population_reward": {"head": head_stats(params, "model.decoder.")}}


@pytest.mark.parametrize("name", ["btl", "dpl", "nppl_attn_det"])
def test_train_step(name):
    arrays = load(f"train_step__{name}")
    model = model_of(name)
    params = model_params(params_of(arrays), name)
    stats = model_stats(params_of(arrays), name)
    episode = Episode(
        by_choice(arrays["in/pairs_C"], arrays["in/choices_C"]),
        by_choice(arrays["in/pairs_T"], arrays["in/choices_T"]),
        jnp.zeros(3, jnp.int32),
        jnp.zeros(3, jnp.int32),
    )

    def loss(params):
        variables = {"params": params, "batch_stats": stats}
        (log_p, _, _), updated = model.apply(
            variables, episode, None, None, "vpl", True, method=forward, mutable=["batch_stats"]
        )
        terms = jax.vmap(neural_process_loss, in_axes=(1, 0))(log_p, episode.targets.mask)
        return terms.loss.mean(), (log_p, updated["batch_stats"])

    (value, (log_p, new_stats)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(value, arrays["out/loss"], rtol=1e-5)
    chosen = np.take_along_axis(arrays["out/logp_choices"], arrays["in/choices_T"][None], axis=-1)[..., 0]
    np.testing.assert_allclose(log_p, chosen, **TOLERANCE)

    def assert_same(ours, theirs):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), ours, theirs)

    torch_gradient = params_of(arrays, "grad")
    assert_same(gradient, model_params(torch_gradient, name))
    settings = AdamW(learning_rate=1e-4, warmup_steps=0, final_fraction=1.0, eps=3e-5, weight_decay=0.01, clip_norm=1e9)
    optimizer = make_optimizer(settings, 100)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    torch_after = params_of(arrays, "param_after")
    assert_same(after, model_params(torch_after, name))
    assert_same(new_stats, model_stats(torch_after, name))

    # The eval-mode forward after the step: running statistics in place of those of the batch.
    variables = {"params": after, "batch_stats": new_stats}
    pairs = jnp.asarray(arrays["in/pairs_T"].reshape(3, 14, 16))
    z = None if name != "nppl_attn_det" else model.apply(variables, episode.context, method="infer").mean[None]
    rewards = model.apply(variables, pairs, z, method="rewards")
    expected = arrays["out/rewards_eval_after_step"]
    np.testing.assert_allclose(rewards.reshape(expected.shape), expected, **TOLERANCE)
