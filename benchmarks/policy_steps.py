"""A training step of NP-DPO on random weights: its speed, its memory, and the time from choices to adapters."""

import dataclasses
import resource
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import PolicyConfig
from fssa_jax.lm.texts import Texts
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder, DecoderConfig, Remat, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.attention import Implementation
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.tasks.policy import PolicyTables
from fssa_jax.tasks.policy_loss import policy_loss
from fssa_jax.tasks.reward import draw_people
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step, many_steps
from fssa_jax.types import ChoiceTable, Comparisons

KINDS = ("plain", "film", "lora_core", "lora")
USERS, TARGETS = 2, 9
_CONTEXT = 6


@dataclasses.dataclass(frozen=True)
class Shape:
    """A language model and how it is trained."""

    config: DecoderConfig
    length: int
    dtype: Any = jnp.float32
    remat: Remat = "none"
    accumulate: int = 2
    implementation: Implementation = "auto"


SHAPES = {
    "small": Shape(
        DecoderConfig(
            vocabulary=32_000,
            width=256,
            layers=4,
            heads=4,
            groups=2,
            head_dim=64,
            mlp_width=1024,
            qkv_bias=True,
            tied=True,
        ),
        256,
    ),
    "qwen2.5-0.5b": Shape(
        DecoderConfig(
            vocabulary=151_936,
            width=896,
            layers=24,
            heads=14,
            groups=2,
            head_dim=64,
            mlp_width=4864,
            qkv_bias=True,
            tied=True,
        ),
        512,
        jnp.bfloat16,
        "full",
        1,
    ),
    "qwen2.5-1.5b": Shape(
        DecoderConfig(
            vocabulary=151_936,
            width=1536,
            layers=28,
            heads=12,
            groups=2,
            head_dim=128,
            mlp_width=8960,
            qkv_bias=True,
            tied=True,
        ),
        512,
        jnp.bfloat16,
        "full",
        1,
    ),
    "smollm2-135m": Shape(
        DecoderConfig(
            vocabulary=49_152, width=576, layers=30, heads=9, groups=3, head_dim=64, mlp_width=1536, tied=True
        ),
        64,
        accumulate=1,
    ),
    "tiny": Shape(
        DecoderConfig(vocabulary=300, width=16, layers=2, heads=2, groups=1, head_dim=8, mlp_width=24, tied=True), 32
    ),
}


def hypernetwork(kind: str, config: DecoderConfig) -> Hypernetwork:
    """Of a kind on its places: film on every block next to a LoRA of everybody of rank 128, low-rank kinds on query and
    value; plain is that LoRA alone."""
    low_rank = place_sizes(config, ("query", "value"))
    if kind in ("plain", "film"):
        places = place_sizes(config, ("residual",)) if kind == "film" else ()
        return Hypernetwork("film", places, config.layers, shared_places=low_rank, shared_rank=128)
    return Hypernetwork(kind, low_rank, config.layers)  # type: ignore[arg-type]


def random_base(shape: Shape) -> Any:
    """Variables of its decoder in its dtype: normal kernels, unit scales, no biases.

    Leaf by leaf, and by the generator of the hardware: one program for all of them compiles for minutes on a GPU.
    """
    shapes: Any = jax.eval_shape(Decoder(shape.config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    keys = iter(jax.random.split(jax.random.key(0, impl="unsafe_rbg"), len(jax.tree.leaves(shapes))))

    def draw(path: tuple, leaf: Any) -> jax.Array:
        key = next(keys)
        if leaf.ndim == 1:
            return jnp.full(leaf.shape, "bias" not in jax.tree_util.keystr(path), shape.dtype)
        return _normal(key, leaf.shape, shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape, dtype)


def peak_memory_gb() -> float:
    """Of the device where it says so, else of this process: of everything so far."""
    told = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return round((told or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30, 2)


def step_speed(
    kind: str, shape: Shape, base: Any, peak_tflops: float = 0.0, repeats: int = 3, trace: str | None = None
) -> dict[str, Any]:
    """Seconds per step, tokens per second, and milliseconds from ten choices to adapters."""
    rng = np.random.default_rng(0)
    texts, features, vocabulary = 200, 64, shape.config.vocabulary
    table = ChoiceTable(
        *(jnp.asarray(rng.integers(0, texts, (50, 2, 12)), jnp.int32) for _ in range(2)),
        jnp.full((50, 2), 12, jnp.int32),
        jnp.zeros(50, jnp.int32),
    )
    tables = PolicyTables(
        Texts(
            jnp.asarray(rng.integers(0, vocabulary, (texts, shape.length)), jnp.int32),
            jnp.full(texts, shape.length * 2 // 5, jnp.int32),
            jnp.full(texts, shape.length, jnp.int32),
        ),
        jnp.full(texts, -1600.0),
        table,
        jnp.asarray(rng.normal(size=(texts, features)), jnp.float32),
        base,
    )
    reward = RewardModel(encoder=SetEncoder(width=64, latent_dim=64, heads=8), width=64)
    conditional = kind != "plain"
    hyper = hypernetwork(kind, shape.config)
    conditioner = Conditioner(hyper, "context", reward) if conditional else Conditioner(hyper, "none")
    settings = PolicyConfig()
    optimizer = make_optimizer(settings.optim, 100)
    context = _CONTEXT if conditional else 0
    draw = draw_people(lambda key, tables: draw_episode(key, tables.choices, max_context=context, max_targets=TARGETS))
    rows = draw(jax.random.split(jax.random.key(0), USERS), tables)
    variables: Any = jax.jit(conditioner.init)(jax.random.key(0), rows.episode, tables.features)
    trained = sum(x.size for x in jax.tree.leaves(variables["params"]))
    state = start_state(variables, optimizer)
    decoder = Decoder(shape.config, shape.dtype, shape.remat, shape.implementation)
    loss = policy_loss(conditioner, decoder, settings.objective, settings.encoder)
    one = make_step(loss, draw, optimizer, users=USERS, seed=0, accumulate=shape.accumulate)
    begun = time.perf_counter()
    step = jax.jit(many_steps(one, 1), donate_argnums=0).lower(state, tables).compile()
    compiling = time.perf_counter() - begun
    memory = step.memory_analysis()
    state, metrics = step(state, tables)
    jax.block_until_ready(metrics)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        state, metrics = step(state, tables)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    if trace is not None:
        with jax.profiler.trace(trace):
            state, metrics = step(state, tables)
            jax.block_until_ready(metrics)
    speed = 2 * USERS * TARGETS * shape.length / min(times)
    out = {
        "seconds_a_step": round(min(times), 4),
        "tokens_a_second": round(speed),
        "trained_parameters": trained,
        "peak_memory_gb": peak_memory_gb(),
        "seconds_to_compile": round(compiling, 1),
    }
    if memory is not None:  # arguments are reused for results
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        out["memory_of_the_program_gb"] = round(total / 2**30, 2)
    if peak_tflops:
        flops = 4 * sum(x.size for x in jax.tree.leaves(base))
        out["mfu"] = round(flops * speed / (1e12 * peak_tflops), 3)
    if conditional:
        out["choices_to_adapters_p50_ms"] = _readiness(conditioner, {"params": state.params}, tables.features)
    return out


def _readiness(conditioner: Conditioner, variables: Any, features: jax.Array) -> float:
    """Milliseconds from ten choices, as rows of features, to adapters."""
    ids = jnp.arange(10)[None]
    context = Comparisons(ids, ids + 10, jnp.ones((1, 10), bool))

    @jax.jit
    def ready(variables: Any, context: Comparisons, table: jax.Array) -> Any:
        q: Any = conditioner.apply(variables, context, table, method="infer")
        return conditioner.apply(variables, q.mean, method="adapt")

    jax.block_until_ready(ready(variables, context, features))
    waits = []
    for _ in range(50):
        begun = time.perf_counter()
        jax.block_until_ready(ready(variables, context, features))
        waits.append(1000 * (time.perf_counter() - begun))
    return round(float(np.median(waits)), 2)
