"""Every family against transformers on torch: hidden states layer by layer, logits, gradients, generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.lm.generate import generate
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from fssa_jax.models.decoder import Decoder, empty_cache
from fssa_jax.ops.adapters import Film, LowRank
from fssa_jax.ops.logprobs import response_log_probs
from fssa_jax.ops.sampling import Sampling
from tests import small_lm
from tests.parity.families import FAMILIES, make, torch

TOKENS = np.random.default_rng(0).integers(3, 101, (3, 20))
LENGTHS = np.array([20, 13, 7])


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(the torch model, ours, our variables)."""
    theirs, directory = make(request.param, tmp_path_factory.mktemp("model") / "m")
    config = read_config(directory)
    return theirs, Decoder(config), load_params(directory, config)


def close(ours, theirs):
    """Within 1e-4 where numbers are of the order of 1; Gemma's states reach 100, and sums their rounding."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1.0, float(np.std(theirs))))


def test_hidden_states_of_every_layer_and_logits(pair):
    theirs, model, variables = pair
    mask = torch.tensor(np.arange(20)[None] < LENGTHS[:, None]).long()
    with torch.no_grad():
        out = theirs(torch.tensor(TOKENS), attention_mask=mask, output_hidden_states=True)
    states, _ = model.apply(variables, jnp.asarray(TOKENS), collect=True, method="hidden")
    real = np.asarray(mask, bool)
    # The last of theirs is normed, the last of ours is not.
    for ours, reference in zip(states[:-1], out.hidden_states[:-1], strict=True):
        close(np.asarray(ours)[real], reference.numpy()[real])
    final, _ = model.apply(variables, jnp.asarray(TOKENS), method="hidden")
    close(np.asarray(final)[real], out.hidden_states[-1].numpy()[real])
    logits = model.apply(variables, jnp.asarray(TOKENS))
    close(np.asarray(logits)[real], out.logits.numpy()[real])


def test_a_cache_changes_nothing(pair):
    _, model, variables = pair
    tokens = jnp.asarray(TOKENS)
    whole, _ = model.apply(variables, tokens, method="hidden")
    cache = empty_cache(model.config, 3, 24)
    step = jax.jit(lambda v, t, p, c: model.apply(v, t, positions=p, cache=c, method="hidden"))
    start = jnp.broadcast_to(jnp.arange(12)[None], (3, 12))
    first, cache = step(variables, tokens[:, :12], start, cache)
    parts = [first]
    for i in range(12, 20):
        out, cache = step(variables, tokens[:, i : i + 1], jnp.full((3, 1), i), cache)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=3e-4)


def test_greedy_generation_token_for_token(tmp_path):
    """64 tokens from ragged prompts, every family; and with a repetition penalty."""
    for name in FAMILIES:
        theirs, directory = make(name, tmp_path / name.replace(" ", "_"), max_position_embeddings=128)
        config = read_config(directory)
        model, variables = Decoder(config), load_params(directory, config)
        prompts = [TOKENS[row, :n].tolist() for row, n in enumerate((5, 11, 3))]
        ours = generate(model, variables, prompts, 64).tokens
        for prompt, new in zip(prompts, ours, strict=True):
            with torch.no_grad():
                out = theirs.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=64,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    attention_mask=torch.ones(1, len(prompt)).long(),
                )
            assert out[0, len(prompt) :].tolist() == new, name


def test_the_repetition_penalty_is_theirs(tmp_path):
    theirs, directory = make("qwen2", tmp_path / "m", max_position_embeddings=128)
    config = read_config(directory)
    prompt = TOKENS[0, :9].tolist()
    ours = generate(
        Decoder(config), load_params(directory, config), [prompt], 40, sampling=Sampling(repetition_penalty=1.3)
    ).tokens[0]
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([prompt]),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            repetition_penalty=1.3,
        )
    assert out[0, 9:].tolist() == ours


@pytest.mark.parametrize("name", ["qwen2", "gemma 2", "llama 3 scaled"])
def test_loss_and_gradients_of_adapters(tmp_path, name):
    """Log-probabilities of responses under LoRA factors of each row's own, and their gradients."""
    theirs, directory = make(name, tmp_path / "m")
    config = read_config(directory)
    model, variables = Decoder(config), load_params(directory, config)
    rng = np.random.default_rng(1)
    inputs, outputs = config.width, config.heads * config.head_dim
    down = rng.normal(size=(config.layers, 3, inputs, 2)).astype(np.float32) * 0.2
    up = rng.normal(size=(config.layers, 3, 2, outputs)).astype(np.float32) * 0.2
    starts, ends = np.array([8, 4, 3]), LENGTHS

    def loss(factors):
        hidden, _ = model.apply(variables, jnp.asarray(TOKENS), {"query": LowRank(*factors)}, method="hidden")
        kernel = model.apply(variables, method="output_kernel")
        return response_log_probs(
            hidden, kernel, jnp.asarray(TOKENS), jnp.asarray(starts), jnp.asarray(ends), softcap=config.logit_softcap
        )

    ours = loss((jnp.asarray(down), jnp.asarray(up)))
    gradients = jax.grad(lambda f: loss(f).sum())((jnp.asarray(down), jnp.asarray(up)))
    factors = [torch.tensor(x, requires_grad=True) for x in (down, up)]
    for i, layer in enumerate(theirs.model.layers):
        layer.self_attn.q_proj.register_forward_hook(
            lambda module, args, out, i=i: out + args[0] @ factors[0][i] @ factors[1][i]
        )
    mask = torch.tensor(np.arange(20)[None] < LENGTHS[:, None]).long()
    log_p = theirs(torch.tensor(TOKENS), attention_mask=mask).logits.log_softmax(-1)
    scores = log_p[:, :-1].gather(-1, torch.tensor(TOKENS)[:, 1:, None])[..., 0]
    place = np.arange(1, 20)[None]
    inside = torch.tensor((place >= starts[:, None]) & (place < ends[:, None]))
    expected = (scores * inside).sum(-1)
    expected.sum().backward()
    np.testing.assert_allclose(ours, expected.detach().numpy(), rtol=1e-4)
    for mine, factor in zip(gradients, factors, strict=True):
        scale = np.abs(factor.grad.numpy()).max()
        np.testing.assert_allclose(mine, factor.grad.numpy(), atol=1e-4 * scale)


PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def test_every_place_takes_an_adapter(tmp_path):
    """LoRA with a core of each row's own at every projection, FiLM on the residual stream: logits as by hooks."""
    theirs, directory = make("qwen2", tmp_path / "m")
    config = read_config(directory)
    rng = np.random.default_rng(2)
    layers = theirs.model.layers
    tree, hooked = {}, []
    for place, name in PROJECTIONS.items():
        linear = [layer.get_submodule(name) for layer in layers]
        down = rng.normal(size=(len(layers), linear[0].in_features, 2)).astype(np.float32) * 0.2
        up = rng.normal(size=(len(layers), 2, linear[0].out_features)).astype(np.float32) * 0.2
        core = rng.normal(size=(len(layers), 3, 2, 2)).astype(np.float32)
        tree[place] = LowRank(jnp.asarray(down), jnp.asarray(up), jnp.asarray(core))
        hooked += [(linear[i], down[i], core[i], up[i]) for i in range(len(layers))]
    scale, shift = rng.normal(size=(2, len(layers), 3, config.width)).astype(np.float32) * 0.2
    tree["residual"] = Film(jnp.asarray(1 + scale), jnp.asarray(shift))
    for linear, *factors in hooked:
        a, m, b = map(torch.tensor, factors)
        linear.register_forward_hook(lambda _, args, out, a=a, m=m, b=b: out + args[0] @ a @ m @ b)
    for i, layer in enumerate(layers):
        gamma, beta = torch.tensor(1 + scale[i])[:, None], torch.tensor(shift[i])[:, None]
        layer.register_forward_hook(lambda _, args, out, g=gamma, b=beta: out * g + b)
    mask = torch.tensor(np.arange(20)[None] < LENGTHS[:, None]).long()
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS), attention_mask=mask).logits.numpy()
    ours = np.asarray(Decoder(config).apply(load_params(directory, config), jnp.asarray(TOKENS), tree))
    real = np.asarray(mask, bool)
    np.testing.assert_allclose(ours[real], expected[real], rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("pool", "layer"), [("mean", 0), ("mean", 2), ("last", 0), ("last", 1)])
def test_embeddings_of_a_decoder(tmp_path, pool, layer):
    theirs, directory = make("qwen2", tmp_path / "m")
    small_lm.tokenizer(directory)
    encoder = TextEncoder(EmbedSettings(str(directory), pool=pool, layer=layer))
    texts = [("how do I bake?", "hey, just mix it."), ("", "bread"), ("mix", "bake bread? just do it, hey.")]
    ours = encoder.embed(texts)
    for ids, vector in zip(encoder.tokens(texts)[0], ours, strict=True):
        with torch.no_grad():
            states = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        state = states[layer or -1][0].numpy()
        expected = state[-1] if pool == "last" else state.mean(0)
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-4)
