"""The speed of policies: a step of NP-DPO on random weights, versus plain LoRA-DPO, and choices to adapters. JSON.

  python -m benchmarks.policy_speed --adapters=lora_core          (two x86-64 cores: under a minute per kind)
  python -m benchmarks.policy_speed --adapters=published,lora_core,lora,film                     (needs PyTorch)
  python -m benchmarks.policy_speed --shape=qwen2.5-1.5b --peak_tflops=989               (a GPU, bfloat16)
  python -m benchmarks.policy_speed --adapters= --policy=WORKDIR

A step takes 36 sequences of 2 people with 9 targets each. --shape=small is a Qwen2 of width 256, 4 layers and a
vocabulary of 32,000 in float32, 256 tokens per sequence, for which the published code takes 10.1 s and 6.7 GB on two
cores; qwen2.5-1.5b has the sizes of Qwen2.5-1.5B in bfloat16 with 512 tokens and full rematerialisation; tiny is for
tests. Kinds: film (on every block, next to a LoRA of everybody of rank 128, as published), lora_core and lora (on query
and value), and plain, that LoRA alone and the same for everybody: what the others cost beyond it is the cost of
conditioning. Model FLOPs are 4 N a token, N the parameters of the frozen base: 2 N forward, 2 N back through
activations. published is the published network in PyTorch, where that is installed, in float32 on the CPU
(benchmarks/published.py). With --policy the time from k choices of new texts to adapters, of a trained and evaluated
policy.
"""

import dataclasses
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import published
from fssa_jax import load, program
from fssa_jax.config import PolicyConfig
from fssa_jax.errors import UserError
from fssa_jax.lm.scoring import Texts
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder, DecoderConfig, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.people.choices import read_choices
from fssa_jax.people.person import PersonPolicy
from fssa_jax.tasks.policy import PolicyTables, policy_loss
from fssa_jax.tasks.reward import draw_people
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step, many_steps
from fssa_jax.types import ChoiceTable, Comparisons

KINDS = ("plain", "film", "lora_core", "lora")
_PUBLISHED = "published"
_USERS, _TARGETS, _CONTEXT = 2, 9, 6


@dataclasses.dataclass(frozen=True)
class Shape:
    """A language model and how it is trained."""

    config: DecoderConfig
    length: int
    dtype: Any = jnp.float32
    remat: Any = "none"
    accumulate: int = 2


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
    "tiny": Shape(
        DecoderConfig(vocabulary=300, width=16, layers=2, heads=2, groups=1, head_dim=8, mlp_width=24, tied=True), 32
    ),
}

_SHAPE = flags.DEFINE_enum("shape", "small", list(SHAPES), "language model and sequences")
_ADAPTERS = flags.DEFINE_list("adapters", list(KINDS), "kinds that are timed; empty for none")
_PEAK = flags.DEFINE_float("peak_tflops", 0.0, "of one device in the shape's dtype, for the MFU; 0: not told")
_POLICY = flags.DEFINE_string("policy", None, "evaluated work directory: from choices to adapters")


def hypernetwork(kind: str, config: DecoderConfig) -> Hypernetwork:
    """Of a kind on its places; see above."""
    low_rank = place_sizes(config, ("query", "value"))
    if kind in ("plain", "film"):
        places = place_sizes(config, ("residual",)) if kind == "film" else ()
        return Hypernetwork("film", places, config.layers, shared_places=low_rank, shared_rank=128)
    return Hypernetwork(kind, low_rank, config.layers)  # type: ignore[arg-type]


def peak_memory_gb() -> float:
    """Of the device where it says so, else of this process: of everything so far."""
    told = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return round((told or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30, 2)


def step_speed(kind: str, shape: Shape, base: Any, peak_tflops: float = 0.0, repeats: int = 3) -> dict[str, Any]:
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
    draw = draw_people(lambda key, tables: draw_episode(key, tables.choices, max_context=context, max_targets=_TARGETS))
    rows = draw(jax.random.split(jax.random.key(0), _USERS), tables)
    variables: Any = jax.jit(conditioner.init)(jax.random.key(0), rows.episode, tables.features)
    trained = sum(x.size for x in jax.tree.leaves(variables["params"]))
    state = start_state(variables, optimizer)
    decoder = Decoder(shape.config, shape.dtype, shape.remat)
    loss = policy_loss(conditioner, decoder, settings.objective, settings.encoder)
    one = make_step(loss, draw, optimizer, users=_USERS, seed=0, accumulate=shape.accumulate)
    step = jax.jit(many_steps(one, 1), donate_argnums=0)
    state, _ = step(state, tables)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        state, metrics = step(state, tables)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    speed = 2 * _USERS * _TARGETS * shape.length / min(times)
    out = {
        "seconds_a_step": round(min(times), 4),
        "tokens_a_second": round(speed),
        "trained_parameters": trained,
        "peak_memory_gb": peak_memory_gb(),
    }
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


def trained_readiness(workdir: Path) -> dict[str, float]:
    """Milliseconds from k choices, whose texts are new to the policy, to adapters that are ready to write."""
    policy = load(workdir)
    if not isinstance(policy, PersonPolicy):
        raise UserError(f"--policy: {workdir} is a reward model; give the work directory of a policy")
    choices = read_choices(workdir / "report" / "person_a.jsonl")
    waits = []
    for i in range(60):
        new = [(f"{prompt} {i}", chosen, rejected) for prompt, chosen, rejected in choices]
        begun = time.perf_counter()
        jax.block_until_ready(policy.adapt(policy.infer(new)))
        waits.append(1000 * (time.perf_counter() - begun))
    return {
        "choices": len(choices),
        "p50_ms": round(float(np.median(waits[10:])), 2),
        "p95_ms": round(float(np.quantile(waits[10:], 0.95)), 2),
    }


def measure(kind: str, shape: str, peak_tflops: float = 0.0) -> dict[str, Any]:
    """One kind, and how many parameters its base has."""
    its = SHAPES[shape]
    if kind == _PUBLISHED:
        seconds = published.policy_step_seconds(its.config, its.length, _USERS * _TARGETS)
        speed = 2 * _USERS * _TARGETS * its.length / seconds
        return {
            "seconds_a_step": round(seconds, 4),
            "tokens_a_second": round(speed),
            "peak_memory_gb": peak_memory_gb(),
        }

    def init(key: jax.Array) -> Any:
        made: Any = Decoder(its.config).init(key, jnp.zeros((1, 2), jnp.int32))
        return jax.tree.map(lambda x: x.astype(its.dtype), made)

    base = jax.jit(init)(jax.random.key(0))
    parameters = sum(x.size for x in jax.tree.leaves(base))
    return {"parameters_of_the_base": parameters, **step_speed(kind, its, base, peak_tflops)}


def measure_apart(kinds: list[str], shape: str, peak_tflops: float = 0.0) -> dict[str, Any]:
    """Every kind in a process of its own, for memory is told of a whole process; and how they compare.

    Raises:
      UserError: a kind that there is not, or that needs PyTorch where there is none.
    """
    if unknown := sorted({*kinds} - {*KINDS, _PUBLISHED}):
        raise UserError(f"--adapters: {unknown[0]!r} is none of {', '.join((*KINDS, _PUBLISHED))}")
    if _PUBLISHED in kinds and published.torch is None:
        raise UserError("--adapters=published: needs PyTorch; pip install torch, or leave it out")
    out = {}
    for kind in kinds:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            out[kind] = process.submit(measure, kind, shape, peak_tflops).result()
    return compared(out)


def compared(out: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What conditioning costs, where "plain" is among the kinds; how many times as fast as the published network."""
    for kind in {*out} & {*KINDS}:
        seconds = out[kind]["seconds_a_step"]
        if kind != "plain" and "plain" in out:
            out[kind]["cost_of_conditioning"] = round(seconds / out["plain"]["seconds_a_step"] - 1, 3)
        if _PUBLISHED in out:
            out[kind]["times_as_fast_as_published"] = round(out[_PUBLISHED]["seconds_a_step"] / seconds, 2)
    return out


def main() -> None:
    """Prints one JSON object."""
    kinds = [kind for kind in _ADAPTERS.value if kind]
    out = {"shape": _SHAPE.value, **measure_apart(kinds, _SHAPE.value, _PEAK.value)}
    if _POLICY.value:
        out["trained_policy"] = trained_readiness(Path(_POLICY.value))
    print(json.dumps({"devices": [d.device_kind for d in jax.devices()], **out}, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
