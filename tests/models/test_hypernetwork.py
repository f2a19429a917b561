"""The hypernetwork: the identity at first, and then z reaches logits, loss, gradients and cached generation."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.generate import generate
from fssa_jax.models.decoder import place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.ops.adapters import apply_film
from fssa_jax.ops.logprobs import response_log_probs
from tests import small_lm

CONFIG = small_lm.CONFIG
PROJECTIONS = ("query", "value", "down")
Z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)), jnp.float32)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(3, 97, (3, 9)))
SETTINGS = {
    "film": {"kind": "film", "places": place_sizes(CONFIG, ("residual", "query"))},
    "film with hidden units": {"kind": "film", "hidden": 4, "places": place_sizes(CONFIG, ("query",))},
    "lora_core full": {"kind": "lora_core", "core": "full", "places": place_sizes(CONFIG, PROJECTIONS)},
    "lora": {"kind": "lora", "places": place_sizes(CONFIG, PROJECTIONS)},
    "lora_core beside a shared LoRA": {
        "kind": "lora_core",
        "core": "diagonal",
        "places": place_sizes(CONFIG, PROJECTIONS),
        "shared_places": place_sizes(CONFIG, ("query", "out")),
        "shared_rank": 4,
    },
}


@pytest.fixture(scope="module")
def lm():
    return small_lm.decoder()


@pytest.fixture(scope="module", params=SETTINGS)
def hyper(request):
    """(module, its parameters at first, the same moved away from the identity)."""
    module = Hypernetwork(layers=CONFIG.layers, rank=2, width=16, **SETTINGS[request.param])
    start = module.init(jax.random.key(0), Z)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return module, start, jax.tree.unflatten(tree, moved)


def test_at_first_nothing_changes(lm, hyper):
    model, variables = lm
    module, start, _ = hyper
    adapters = module.apply(start, Z)
    np.testing.assert_array_equal(model.apply(variables, TOKENS, adapters), model.apply(variables, TOKENS))


def test_z_reaches_logits_loss_and_gradients(lm, hyper):
    model, variables = lm
    module, start, moved = hyper

    def loss(parameters, z):
        hidden, _ = model.apply(variables, TOKENS, module.apply(parameters, z), method="hidden")
        kernel = model.apply(variables, method="output_kernel")
        starts, ends = jnp.array([3, 2, 4]), jnp.array([9, 8, 7])
        return -response_log_probs(hidden, kernel, TOKENS, starts, ends).mean()

    other = Z.at[1].add(1.0)
    before, after = (model.apply(variables, TOKENS, module.apply(moved, z)) for z in (Z, other))
    changed = np.abs(np.asarray(before - after)).max((1, 2))
    assert changed[1] > 1e-2
    np.testing.assert_array_equal(changed[[0, 2]], 0)  # a person's latent is for that person's row alone
    assert abs(loss(moved, Z) - loss(moved, other)) > 1e-4
    assert np.abs(np.asarray(jax.grad(loss, argnums=1)(moved, Z))).min(1).max() > 0
    # From the identity too: what the parameters learn depends on the latents.
    first, second = (jax.tree.leaves(jax.grad(loss)(start, z)) for z in (Z, other))
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(first, second, strict=True)) > 1e-5


def test_z_reaches_cached_generation(lm, hyper):
    """Greedy tokens for each latent are those of the uncached forward, and differ between latents."""
    model, variables = lm
    module, _, moved = hyper
    prompt = small_lm.ragged(0, [5])[0]
    adapters = module.apply(moved, Z)
    out = generate(model, variables, [prompt] * 3, 12, adapters=adapters).tokens
    assert len({tuple(row) for row in out}) > 1
    for row, new in enumerate(out):
        logits = model.apply(variables, jnp.asarray([prompt + new]), module.apply(moved, Z[row : row + 1]))[0]
        assert logits.argmax(-1).tolist()[len(prompt) - 1 : -1] == new


def test_golden_film_is_the_hypernetwork_with_published_parameters():
    """The published FiLM has γ's bias of 1 in its layer; ours adds it outside."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "film.npz")
    module = Hypernetwork("film", (("residual", 24, 24),), layers=1)

    def dense(part: str, less: float):
        kernel, bias = golden[f"param/{part}_mlp.net.0.weight"].T, golden[f"param/{part}_mlp.net.0.bias"]
        return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias - less)}

    params = {"residual_scale": dense("gamma", 1.0), "residual_shift": dense("beta", 0.0)}
    film = module.apply({"params": params}, jnp.asarray(golden["in/latent"]))["residual"]
    film = jax.tree.map(lambda leaf: leaf[0], film)
    np.testing.assert_allclose(apply_film(film, jnp.asarray(golden["in/hidden"])), golden["out/modulated"], atol=1e-5)
