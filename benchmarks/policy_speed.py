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

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import published
from benchmarks.policy_steps import KINDS, SHAPES, TARGETS, USERS, peak_memory_gb, random_base, step_speed
from fssa_jax import load, program
from fssa_jax.errors import UserError
from fssa_jax.people.choices import read_choices
from fssa_jax.people.person import PersonPolicy

_PUBLISHED = "published"

_SHAPE = flags.DEFINE_enum("shape", "small", list(SHAPES), "language model and sequences")
_ADAPTERS = flags.DEFINE_list("adapters", list(KINDS), "kinds that are timed; empty for none")
_PEAK = flags.DEFINE_float("peak_tflops", 0.0, "of one device in the shape's dtype, for the MFU; 0: not told")
_POLICY = flags.DEFINE_string("policy", None, "evaluated work directory: from choices to adapters")


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
        seconds = published.policy_step_seconds(its.config, its.length, USERS * TARGETS)
        speed = 2 * USERS * TARGETS * its.length / seconds
        return {
            "seconds_a_step": round(seconds, 4),
            "tokens_a_second": round(speed),
            "peak_memory_gb": peak_memory_gb(),
        }

    base = random_base(its)
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
