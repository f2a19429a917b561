"""Training steps of NP-BTL at given sizes: their speed and memory."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import AdamW, NeuralProcess
from fssa_jax.data.dataset import make_table
from fssa_jax.models.rewards import RewardModel
from fssa_jax.models.set_encoder import SetEncoder
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.tasks.reward import Tables, draw_people, reward_loss
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step, many_steps

_STEPS = 10


def measure(
    *, d: int, users: int = 64, targets: int = 20, k: int = 10, published: bool = False, calls: int = 5
) -> dict:
    """Milliseconds per step and memory of the compiled program."""
    rng = np.random.default_rng(0)
    texts, people, rows = 2000, 200, max(k, targets)
    ids = rng.integers(0, texts, (people, 2, 2, rows))
    table = make_table([[pool.T for pool in person] for person in ids], [0] * people)
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
    for call in range(calls + 1):
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
