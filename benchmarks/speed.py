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
from functools import partial

import jax
from absl import flags

from benchmarks import reward_steps
from benchmarks.published import step_milliseconds
from fssa_jax import program

_CALLS = flags.DEFINE_integer("calls", 5, "timed calls of 10 steps")
_GROWTH = flags.DEFINE_bool("growth", True, "also measure other numbers of users, targets, choices and features")


def main() -> None:
    """The published shapes, then one size at a time."""
    measure = partial(reward_steps.measure, calls=_CALLS.value)
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
