"""Adapters: identity, one row each, in the decoder with and without a cache; golden FiLM and the published network."""

import copy
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fssa_jax.lm.generate import generate
from fssa_jax.lm.peft import save_lora
from fssa_jax.models.decoder import Decoder, DecoderConfig, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.layers import unstack_layers
from fssa_jax.ops.adapters import (
    Film,
    LowRank,
    apply_adapter,
    apply_film,
    apply_low_rank,
    combine_adapters,
    with_strength,
)
from tests import small_lm
from tests.mistakes import complaint

GOLDEN = Path(__file__).parents[1] / "golden"
L, B, R = small_lm.CONFIG.layers, 3, 2
SIZES = {"query": (32, 32), "value": (32, 16), "gate": (32, 48), "down": (48, 32), "residual": (32, 32)}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 97, (B, 9)))


def random_adapters(kind: str, seed: int = 0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)

    if kind == "film":
        return {"residual": Film(1 + draw(L, B, 32), draw(L, B, 32)), "query": Film(1 + draw(L, B, 32), draw(L, B, 32))}
    cores = {"lora_diagonal": draw(L, B, R), "lora_core": draw(L, B, R, R)}
    return {
        name: LowRank(draw(L, B, i, R), draw(L, B, R, o))
        if kind == "lora"
        else LowRank(draw(L, i, R), draw(L, R, o), cores[kind])
        for name, (i, o) in SIZES.items()
    }


KINDS = ["film", "lora", "lora_diagonal", "lora_core"]


@pytest.fixture(scope="module")
def lm():
    return small_lm.decoder()


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_is_bit_equal_to_none(lm, kind):
    model, variables = lm
    adapters = random_adapters(kind)
    identity = {
        name: Film(jnp.ones_like(a.scale), jnp.zeros_like(a.shift))
        if isinstance(a, Film)
        else LowRank(a.down, jnp.zeros_like(a.up), a.core)
        for name, a in adapters.items()
    }
    np.testing.assert_array_equal(model.apply(variables, TOKENS, identity), model.apply(variables, TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_its_own_row_alone(lm, kind):
    model, variables = lm
    one, other = random_adapters(kind, 0), random_adapters(kind, 1)

    def swap(a, b):
        return a.at[:, 1].set(b[:, 1]) if a.ndim > 2 and a.shape[:2] == (L, B) else a

    mixed = jax.tree.map(swap, one, other)
    before, after = model.apply(variables, TOKENS, one), model.apply(variables, TOKENS, mixed)
    np.testing.assert_array_equal(before[jnp.array([0, 2])], after[jnp.array([0, 2])])
    assert np.abs(before[1] - after[1]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_adapters_is_the_uncached_forward(lm, kind):
    model, variables = lm
    adapters = random_adapters(kind)
    prompts = small_lm.ragged(0, [5, 9, 3])
    out = generate(model, variables, prompts, 6, adapters=adapters)
    for row, (prompt, new) in enumerate(zip(prompts, out.tokens, strict=True)):
        mine = jax.tree.map(lambda x, r=row: x[:, r : r + 1] if x.ndim > 2 and x.shape[:2] == (L, B) else x, adapters)
        tokens = np.zeros((1, 15), np.int32)  # one shape for all rows; what follows does not matter
        tokens[0, : len(prompt) + 6] = [*prompt, *new]
        logits = model.apply(variables, jnp.asarray(tokens), mine)[0]
        assert logits.argmax(-1).tolist()[len(prompt) - 1 : len(prompt) + 5] == new


def test_an_adapter_at_a_place_that_does_not_exist_is_named(lm):
    model, variables = lm
    with pytest.raises(ValueError, match="no place 'q_proj'"):
        model.apply(variables, TOKENS, {"q_proj": random_adapters("film")["query"]})


def test_shared_and_own_factors_are_the_same_product():
    rng = np.random.default_rng(0)
    x, y, down, up, core = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, 4, 5), (B, 4, 6), (5, R), (R, 6), (B, R, R))
    )
    own = LowRank(jnp.einsum("dr,brs->bds", down, core), jnp.broadcast_to(up[None], (B, R, 6)))
    np.testing.assert_allclose(apply_low_rank(LowRank(down, up, core), x, y), apply_low_rank(own, x, y), atol=1e-5)
    diagonal = LowRank(down, up, jnp.diagonal(core, axis1=1, axis2=2))
    full = LowRank(down, up, jax.vmap(jnp.diag)(diagonal.core))
    np.testing.assert_allclose(apply_low_rank(diagonal, x, y), apply_low_rank(full, x, y), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_be_for_several_sequences(lm, kind):
    """Rows for people, each with two sequences that follow each other: as if every sequence had its person's row."""
    model, variables = lm
    adapters = random_adapters(kind)
    twice = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=1) if a.ndim > 2 and a.shape[:2] == (L, B) else a, adapters)
    tokens = jnp.concatenate([TOKENS, TOKENS[::-1]])
    np.testing.assert_allclose(
        model.apply(variables, tokens, adapters), model.apply(variables, tokens, twice), atol=1e-5
    )


def test_adapters_at_one_place_are_applied_one_after_the_other(lm):
    model, variables = lm
    core, lora = random_adapters("lora_core")["query"], random_adapters("lora", 1)["query"]
    both = model.apply(variables, TOKENS, {"query": (lora, core)})
    order = model.apply(variables, TOKENS, {"query": (core, lora)})
    np.testing.assert_allclose(both, order, atol=1e-4)  # sums of what each adds
    x = jnp.ones((B, 2, 32))
    first = apply_low_rank(lora_of(lora), x, x)
    expected = apply_low_rank(lora_of(core), x, first)
    np.testing.assert_allclose(apply_adapter((lora_of(lora), lora_of(core)), x, x), expected)


def lora_of(adapter):
    """The adapter of the first layer."""
    return jax.tree.map(lambda a: a[0], adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_combined_adapters_move_by_the_weighted_sum(kind):
    """At every place by itself: what is added to an output is linear in the weights."""
    adapters = random_adapters(kind)
    weights = jnp.array([[0.25, 0.75, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    combined = combine_adapters(adapters, weights)
    rng = np.random.default_rng(3)
    for place in adapters:
        one, mixed = lora_of(adapters[place]), lora_of(combined[place])
        width = 32 if isinstance(one, Film) else one.down.shape[-2]
        x = jnp.asarray(rng.normal(size=(1, 4, width)), jnp.float32)
        y = x if isinstance(one, Film) else jnp.zeros((1, 4, one.up.shape[-1]))
        x, y = (jnp.repeat(v, B, axis=0) for v in (x, y))
        moved = apply_adapter(one, x, y) - y
        expected = jnp.einsum("or,rtd->otd", weights, moved)
        np.testing.assert_allclose(apply_adapter(mixed, x, y) - y, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_multiplies_what_every_row_moves(kind):
    adapters = random_adapters(kind)
    stronger = with_strength(adapters, 1.5)
    rng = np.random.default_rng(3)
    for place in adapters:
        one, more = lora_of(adapters[place]), lora_of(stronger[place])
        width = 32 if isinstance(one, Film) else one.down.shape[-2]
        x = jnp.asarray(rng.normal(size=(B, 4, width)), jnp.float32)
        y = x if isinstance(one, Film) else jnp.zeros((B, 4, one.up.shape[-1]))
        np.testing.assert_allclose(apply_adapter(more, x, y) - y, 1.5 * (apply_adapter(one, x, y) - y), atol=1e-4)
    assert with_strength(adapters, 1.0) is adapters


def test_rows_that_do_not_fit_are_named():
    """Else a sequence would get two people's adapters, or one weight would count for everybody."""
    three = Film(jnp.ones((3, 2)), jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="3 rows cannot be divided evenly among 4 sequences"):
        apply_film(three, jnp.ones((4, 3, 2)))
    core = LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="3 rows cannot be divided"):
        apply_low_rank(core, jnp.ones((4, 3, 2)), jnp.ones((4, 3, 2)))
    people = {"residual": Film(jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)))}
    with pytest.raises(ValueError, match="weights of 1 rows for adapters of 3"):
        combine_adapters(people, jnp.array([[1.0], [1.0]]))


def test_what_everybody_shares_is_not_scaled():
    rng = np.random.default_rng(0)
    shared = LowRank(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((L, 32, R), (L, R, 32))))
    tree = {"query": (shared, random_adapters("lora_core")["query"])}
    combined = combine_adapters(tree, jnp.zeros((1, B)))
    np.testing.assert_array_equal(combined["query"][0].up, shared.up)
    assert (np.asarray(combined["query"][1].core) == 0).all()
    none = with_strength(tree, 0.0)
    np.testing.assert_array_equal(none["query"][0].up, shared.up)
    assert (np.asarray(none["query"][1].core) == 0).all()


def linear(golden, name: str, z):
    return z @ golden[f"{name}.weight"].T + golden[f"{name}.bias"]


def test_golden_film():
    golden = np.load(GOLDEN / "film.npz")
    z = golden["in/latent"]
    film = Film(*(jnp.asarray(linear(golden, f"param/{part}_mlp.net.0", z)) for part in ("gamma", "beta")))
    np.testing.assert_allclose(apply_film(film, jnp.asarray(golden["in/hidden"])), golden["out/modulated"], atol=1e-5)


def published():
    """The published policy: Qwen2 with LoRA on query and value, and FiLM on the residual stream of every block.

    Its adapters come out of our hypernetwork, with the published weights.
    """
    g = np.load(GOLDEN / "conditional_lm_tiny.npz")
    n = int(g["config/num_hidden_layers"])
    width, heads, groups = (
        int(g[f"config/{k}"]) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    config = DecoderConfig(
        vocabulary=int(g["config/vocab_size"]),
        width=width,
        layers=n,
        heads=heads,
        groups=groups,
        head_dim=width // heads,
        mlp_width=int(g["config/intermediate_size"]),
        qkv_bias=True,
        tied=True,
        norm_epsilon=float(g["config/rms_norm_eps"]),
    )
    base = "param/base.model.model"

    def stack(name, transposed=False):
        rows = [g[f"{base}.layers.{i}.{name}"] for i in range(n)]
        return jnp.asarray(np.stack([r.T if transposed else r for r in rows]))

    layers = {}
    for ours, theirs, bias in (
        ("query", "self_attn.q_proj.base_layer", True),
        ("key", "self_attn.k_proj", True),
        ("value", "self_attn.v_proj.base_layer", True),
        ("out", "self_attn.o_proj", False),
        ("gate", "mlp.gate_proj", False),
        ("up", "mlp.up_proj", False),
        ("down", "mlp.down_proj", False),
    ):
        layers[ours] = {"kernel": stack(f"block.{theirs}.weight", True)}
        if bias:
            layers[ours]["bias"] = stack(f"block.{theirs}.bias")
    layers["attention_norm"] = {"scale": stack("block.input_layernorm.weight")}
    layers["mlp_norm"] = {"scale": stack("block.post_attention_layernorm.weight")}
    params = {
        "embedding": jnp.asarray(g[f"{base}.embed_tokens.weight"]),
        "layers": unstack_layers(layers, n),
        "norm": jnp.asarray(g[f"{base}.norm.weight"]),
    }
    rank = int(g["config/lora_r"])
    hyper = Hypernetwork(
        "film",
        place_sizes(config, ("residual",)),
        n,
        shared_places=place_sizes(config, ("query", "value")),
        shared_rank=rank,
        shared_scale=float(g["config/lora_alpha"]) / rank,
    )
    emitting = {}
    for ours, theirs in (("query", "q_proj"), ("value", "v_proj")):
        for side, factor in (("down", "A"), ("up", "B")):
            emitting[f"shared_{ours}_{side}"] = stack(f"block.self_attn.{theirs}.lora_{factor}.default.weight", True)
    for ours, theirs, start in (("scale", "gamma", 1.0), ("shift", "beta", 0.0)):
        net = [f"{base}.layers.{i}.film.{theirs}_mlp.net.0" for i in range(n)]
        emitting[f"residual_{ours}"] = {
            "kernel": jnp.asarray(np.concatenate([g[f"{name}.weight"].T for name in net], axis=1)),
            "bias": jnp.asarray(np.concatenate([g[f"{name}.bias"] - start for name in net])),
        }
    adapters = hyper.apply({"params": emitting}, jnp.asarray(g["in/latent"]))
    lora = {place: adapters[place] for place in ("query", "value")}
    return g, Decoder(config), {"params": params}, lora, adapters


def test_golden_conditional_language_model():
    g, model, variables, lora, adapters = published()
    tokens, real = jnp.asarray(g["in/input_ids"]), g["in/attention_mask"].astype(bool)
    for tree, name in ((lora, "logits_no_latent"), (adapters, "logits")):
        out = np.asarray(model.apply(variables, tokens, tree))
        np.testing.assert_allclose(out[real], g[f"out/{name}"][real], atol=1e-4)


def test_golden_greedy_generation_with_a_latent_for_each_row():
    g, model, variables, _, adapters = published()
    prompts = g["out/greedy_prompt"].tolist()
    out = generate(model, variables, prompts, 8, adapters=adapters)
    assert [p + o for p, o in zip(prompts, out.tokens, strict=True)] == g["out/greedy_sequences"].tolist()


@pytest.mark.parametrize("kind", ["lora", "lora_diagonal", "lora_core"])
def test_a_row_that_is_saved_as_a_lora_is_the_same_change_of_the_weights(lm, kind, tmp_path):
    """The file of PEFT, W + B A as that library adds it, against the adapter itself; a shared LoRA beside."""
    model, variables = lm
    adapters = {place: a for place, a in random_adapters(kind).items() if place != "residual"}
    shared = random_adapters("lora_core", seed=1)["gate"]
    adapters["gate"] = (LowRank(shared.down, shared.up), adapters["gate"])
    save_lora(tmp_path / "person", adapters, model.config, "the/base", row=1)
    settings = json.loads((tmp_path / "person" / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == 2 * R
    assert settings["target_modules"] == ["down_proj", "gate_proj", "q_proj", "v_proj"]
    tensors = load_file(tmp_path / "person" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * L
    names = {"query": "self_attn.q_proj", "value": "self_attn.v_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj"}
    merged = copy.deepcopy(jax.device_get(variables))
    for place, name in names.items():
        for layer in range(L):
            a, b = (tensors[f"base_model.model.model.layers.{layer}.{name}.lora_{x}.weight"] for x in "AB")
            mine = merged["params"]["layers"][layer][place]
            mine["kernel"] = mine["kernel"] + (b @ a).T
    expected = model.apply(variables, TOKENS, adapters)[1]
    assert np.abs(expected - model.apply(variables, TOKENS)[1]).max() > 0.01
    out = model.apply(jax.tree.map(jnp.asarray, merged), TOKENS)[1]
    np.testing.assert_allclose(out, expected, atol=2e-4)


def test_film_is_no_lora(tmp_path):
    message = complaint(save_lora, tmp_path / "person", random_adapters("film"), small_lm.CONFIG)
    assert "FiLM is not a low-rank change of the weights" in message
    assert not (tmp_path / "person").exists()
