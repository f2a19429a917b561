"""NP-BTL training steps per second at the published shapes, and how time and memory grow; prints JSON.

  python -m benchmarks.speed

Published shapes: 64 users, 20 targets, k = 10 for everybody, hidden and latent width 256, self-attention, batch
norm in the head; at d = 1 an MLP on pairs and a Gaussian z with the published objective, at d = 4096 one linear
layer and a deterministic z, as the published configurations have it. The published code reaches 7.2 loop steps/s
(59 ms model step, 72 ms loader) at d = 1 and 151 ms per step at d = 4096 on two cores. Times here are of the whole
step: drawing the batch from a table on the device, forward, backward, AdamW. Each figure is the median over calls
of 10 steps. With torch installed its published network is timed in the same run (benchmarks/published.py).
"""

import json
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.published import step_milliseconds
from fssa_jax import program
from fssa_jax.config import AdamW, NeuralProcess
from fssa_jax.data.dataset import make_table
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.tasks.reward import Tables, draw_people, reward_loss
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step, many_steps

_CALLS = flags.DEFINE_integer("calls", 5, "timed calls of 10 steps")
_GROWTH = flags.DEFINE_bool("growth", True, "also measure other numbers of users, targets, choices and features")
_STEPS = 10


def measure(*, d: int, users: int = 64, targets: int = 20, k: int = 10, published: bool = False) -> dict:
    """Milliseconds per step and memory of the compiled program."""
    rng = np.random.default_rng(0)
    texts, people, rows = 2000, 200, max(k, targets)
    ids = rng.integers(0, texts, (people, 2, 2, rows))
    table = make_table([[(pool[0], pool[1]) for pool in person] for person in ids], [0] * people)
    features = jnp.asarray(rng.normal(size=(texts, d)), jnp.float32)
    tables = Tables(jax.tree.map(jnp.asarray, table), features)
    extra: dict = {"gaussian": True}
    if published:
        extra = {"pool": "sum", "prior_choice": False, "residual": False, "gaussian": d == 1}
        extra["pair"] = "mlp" if d == 1 else "linear"
    encoder = SetEncoder(width=256, latent_dim=256, **extra)
    model = RewardModel(encoder=encoder, width=256, norm="batch" if published else "none")

    draw = draw_people(lambda key, tables: draw_episode(key, tables.choices, max_context=k, max_targets=targets))
    optimizer = make_optimizer(AdamW(), 1000)
    objective = NeuralProcess(kind="published" if published else "vpl")
    two = draw(jax.random.split(jax.random.key(0), 2), tables)
    state = start_state(jax.jit(model.init)(jax.random.key(0), two.episode, features), optimizer)
    step = make_step(reward_loss(model, objective), draw, optimizer, users=users, seed=0)
    compiled = jax.jit(many_steps(step, _STEPS), donate_argnums=0).lower(state, tables).compile()
    memory = compiled.memory_analysis()
    times = []
    for call in range(_CALLS.value + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, tables)
        jax.block_until_ready(metrics)
        if call:  # the first call warms up
            times.append((time.perf_counter() - start) / _STEPS)
    seconds = statistics.median(times)
    out = {"ms": round(1e3 * seconds, 2), "steps_per_second": round(1 / seconds, 1)}
    if memory is not None:
        total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        out["megabytes"] = round(total / 2**20, 1)
    return {"d": d, "users": users, "targets": targets, "k": k, "published_network": published, **out}


def main() -> None:
    """The published shapes, then one size at a time."""
    runs = [measure(d=d, published=published) for d in (1, 4096) for published in (True, False)]
    growth = []
    if _GROWTH.value:
        growth = [measure(d=256)]
        growth += [measure(d=256, users=n) for n in (16, 256)]
        growth += [measure(d=256, targets=n) for n in (5, 80)]
        growth += [measure(d=256, k=n) for n in (2, 40)]
        growth += [measure(d=n) for n in (16, 1024)]
    published_code = {
        "d = 1 loop": 7.2,
        "d = 1 model step": round(1000 / 59, 1),
        "d = 4096 model step": round(1000 / 151, 1),
    }
    torch_ms = {f"d = {d}": step_milliseconds(d) for d in (1, 4096)}
    print(
        json.dumps(
            {
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "published_code_steps_per_second": published_code,
                "published_network_in_torch_ms": torch_ms,
                "published_shapes": runs,
                "growth": growth,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    program.run(main, __doc__ or "")
