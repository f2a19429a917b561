"""The speed of a chat model of the size of SmolLM2-135M next to transformers and peft on torch, in one run. JSON.

  python -m benchmarks.chat_speed                    (two x86-64 cores: six minutes; needs torch, transformers and peft)
  python -m benchmarks.chat_speed --model=tiny

Random weights, float32. Every part runs in a process of its own, which gives its peak memory, and all take the same
number of threads. The median of three calls after one that compiles.

* decode_1, decode_8: new tokens per second of greedy decoding, 64 after prompts of 32, for 1 or 8 people. Ours have an
  adapter each, of rank 8 on seven projections of the last third of the layers. The model of transformers has none.
* score: tokens per second of log-probabilities of 32 responses; logits of the responses alone, on both sides.
* step: seconds of a step on 16 sequences of 64 tokens, 25 of them the prompt: NP-DPO with low-rank adapters for 8
  people, against LoRA-DPO for everybody with the reference known. "equal" has adapters of rank 8 on the seven
  projections of all layers, as the LoRA has. "spared" has them on the last third of the layers, with the states below
  computed before, and the prompt of a pair computed once.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import peft_steps
from benchmarks.policy_steps import SHAPES, Shape, peak_memory_gb, random_base
from fssa_jax import program
from fssa_jax.config import PolicyConfig
from fssa_jax.lm.generate import generate
from fssa_jax.lm.packing import number_prompts
from fssa_jax.lm.scoring import log_probs_of
from fssa_jax.lm.texts import Texts
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.adapters import LowRank
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.ops.padding import Plan
from fssa_jax.progress import doing
from fssa_jax.tasks.policy import PolicyTables
from fssa_jax.tasks.policy_loss import policy_loss
from fssa_jax.tasks.reward import draw_people
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step, many_steps
from fssa_jax.types import ChoiceTable

_MODEL = flags.DEFINE_enum("model", "smollm2-135m", ["smollm2-135m", "tiny"], "its sizes; tiny is for tests")

PLACES = ("query", "key", "value", "out", "gate", "up", "down")
_THEIRS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RANK, _PEOPLE, _NEW, _PROMPT, _TEXTS, _REPEATS = 8, 8, 64, 32, 32, 3
_PROMPT_SHARE = 0.4


def _median(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _threads() -> int:
    return os.cpu_count() or 1


def _adapters(shape: Shape, people: int) -> dict[str, LowRank]:
    layers, keys = shape.config.layers // 3 or 1, iter(jax.random.split(jax.random.key(0), 2 * len(PLACES)))
    return {
        place: LowRank(
            0.02 * jax.random.normal(next(keys), (layers, people, inputs, _RANK)),
            0.02 * jax.random.normal(next(keys), (layers, people, _RANK, outputs)),
        )
        for place, inputs, outputs in place_sizes(shape.config, PLACES)
    }


def decode(shape: Shape, people: int, adapted: bool = True) -> float:
    """New tokens per second of ours."""
    base, model = random_base(shape), Decoder(shape.config)
    prompts = np.random.default_rng(0).integers(3, shape.config.vocabulary, (people, _PROMPT)).tolist()
    adapters = _adapters(shape, people) if adapted else None
    return people * _NEW / _median(lambda: generate(model, base, prompts, _NEW, adapters=adapters).tokens)


def decode_theirs(shape: Shape, people: int) -> float:
    """New tokens per second of transformers."""
    import torch

    torch.set_num_threads(_threads())
    model = peft_steps.language_model(shape).eval()
    prompts = torch.randint(3, shape.config.vocabulary, (people, _PROMPT))
    given = {"max_new_tokens": _NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
    with torch.inference_mode():
        return (
            people
            * _NEW
            / _median(lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **given).sum().item())
        )


def _texts(shape: Shape, number: int) -> Texts:
    """Texts of the length of the shape; two neighbours have one prompt."""
    rng, start = np.random.default_rng(0), int(shape.length * _PROMPT_SHARE)
    tokens = rng.integers(3, shape.config.vocabulary, (number, shape.length)).astype(np.int32)
    tokens[1::2, :start] = tokens[::2, :start]
    starts, ends = np.full(number, start, np.int32), np.full(number, shape.length, np.int32)
    prompts = number_prompts(tokens, starts)
    return Texts(*map(jnp.asarray, (tokens, starts, ends)), prompts=jnp.asarray(prompts))


def score(shape: Shape) -> float:
    """Tokens per second of log-probabilities of ours."""
    base, texts, ids = random_base(shape), _texts(shape, _TEXTS), jnp.arange(_TEXTS)
    return _TEXTS * shape.length / _median(lambda: log_probs_of(Decoder(shape.config), base, texts, ids))


def score_theirs(shape: Shape) -> float:
    """Tokens per second of transformers."""
    import torch

    torch.set_num_threads(_threads())
    model, texts = peft_steps.language_model(shape).eval(), _texts(shape, _TEXTS)
    tokens, start = torch.tensor(np.asarray(texts.tokens)).long(), int(texts.starts[0])

    def run() -> float:
        hidden = model.model(tokens).last_hidden_state[:, start - 1 : -1]
        losses = torch.nn.functional.cross_entropy(
            model.lm_head(hidden).flatten(0, 1), tokens[:, start:].flatten(), reduction="none"
        )
        return losses.sum().item()

    with torch.inference_mode():
        return _TEXTS * shape.length / _median(run)


def step(shape: Shape, spared: bool) -> dict[str, float]:
    """Seconds of a step of NP-DPO on two sequences each for 8 people, and the memory of the process."""
    config = shape.config
    layers = (config.layers // 3 or 1) if spared else config.layers
    base, decoder = random_base(shape), Decoder(config)
    texts = _texts(shape, 2 * 16)
    if spared:
        below = config.layers - layers
        states: Any = decoder.apply(base, texts.tokens, until=below, method="hidden")
        texts = Texts(texts.tokens, texts.starts, texts.ends, states[0], texts.prompts, below)
    pairs = jnp.arange(16) * 2
    rows = jnp.broadcast_to(pairs[None, None], (20, 2, 16))
    table = ChoiceTable(rows, rows + 1, jnp.full((20, 2), 16), jnp.zeros(20, jnp.int32))
    features = jax.random.normal(jax.random.key(1), (32, 64))
    tables = PolicyTables(texts, jnp.full(32, -300.0), table, features, base)
    hyper = Hypernetwork("lora_core", place_sizes(config, PLACES), layers, rank=_RANK, core="full")
    encoder = SetEncoder(width=64, latent_dim=32, heads=8)
    conditioner = Conditioner(hyper, "context", RewardModel(encoder=encoder, width=64))
    settings = PolicyConfig()
    optimizer = make_optimizer(settings.optim, 100)
    draw = draw_people(lambda key, tables: draw_episode(key, tables.choices, max_context=10, max_targets=1))
    first = draw(jax.random.split(jax.random.key(0), _PEOPLE), tables)
    state = start_state(jax.jit(conditioner.init)(jax.random.key(0), first.episode, features), optimizer)
    length = 2 * shape.length - int(shape.length * _PROMPT_SHARE) + 1 if spared else shape.length
    plan: Plan = ((_PEOPLE if spared else 2 * _PEOPLE, length),)
    loss = policy_loss(conditioner, decoder, settings.objective, settings.encoder, plan, share=spared)
    one = make_step(loss, draw, optimizer, users=_PEOPLE, seed=0)
    run = jax.jit(many_steps(one, 1), donate_argnums=0)
    times = []
    for _ in range(1 + _REPEATS):
        begun = time.perf_counter()
        state, metrics = run(state, tables)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(times[1:]), "peak_memory_gb": peak_memory_gb()}


def step_theirs(shape: Shape, rows: int) -> dict[str, float]:
    """The same of LoRA-DPO in peft, in micro-batches of `rows` sequences."""
    import torch

    torch.set_num_threads(_threads())
    work = peft_steps.LoraDpo(_PEOPLE, _PROMPT_SHARE, _RANK, _THEIRS)
    found = peft_steps.step_of(shape, work, "cpu", torch.float32, rows)
    return {"seconds": found["seconds_a_step"], "peak_memory_gb": found["peak_memory_gb"]}


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(shape: Shape) -> dict[str, Any]:
    """Everything, one part after another; ours alone where PyTorch, transformers or peft are not installed."""
    theirs = peft_steps.available()
    calls: dict[str, tuple[Any, ...]] = {
        "decode_1 ours": (decode, shape, 1),
        "decode_8 ours": (decode, shape, _PEOPLE),
        "decode_8 ours_without_adapters": (decode, shape, _PEOPLE, False),
        "score ours": (score, shape),
        "step equal": (step, shape, False),
        "step spared": (step, shape, True),
    }
    if theirs:
        calls |= {
            "decode_1 transformers": (decode_theirs, shape, 1),
            "decode_8 transformers": (decode_theirs, shape, _PEOPLE),
            "score transformers": (score_theirs, shape),
            "step peft_by_4": (step_theirs, shape, 4),
            "step peft_by_16": (step_theirs, shape, 16),
        }
    out: dict[str, Any] = {}
    with doing("speed", len(calls), "measurements") as work:
        for name, call in calls.items():
            part, side = name.split()
            out.setdefault(part, {})[side] = _alone(*call)
            work.add(1)
    if theirs:
        for part in ("decode_1", "decode_8", "score"):
            out[part]["ratio"] = out[part]["ours"] / out[part]["transformers"]
        best = min(out["step"][f"peft_by_{rows}"]["seconds"] for rows in (4, 16))
        for name in ("equal", "spared"):
            out["step"][name]["ratio"] = best / out["step"][name]["seconds"]
    return json.loads(json.dumps(out), parse_float=lambda x: float(f"{float(x):.3g}"))


def main() -> None:
    """All measurements, as JSON."""
    machine = f"{platform.machine()}, {_threads()} threads"
    out = {"machine": machine, "jax": jax.__version__, "model": _MODEL.value, **measure(SHAPES[_MODEL.value])}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
