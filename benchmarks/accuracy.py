"""Trains and evaluates one configuration with several seeds; prints the mean of every series as JSON.

python -m benchmarks.accuracy --config=configs/synthetic.py:np_btl --seeds=0,1,2,3,4
python -m benchmarks.accuracy --config=configs/styles.py:np_btl --seeds=0,1,2
"""

import copy
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags

from fssa_jax import program
from fssa_jax.config import Chat, Styles, Synthetic
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train

program.define_config_words()
_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py:VARIANT")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of parameters, batches and, for benchmarks, data")


def mean_series(reports: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The mean over reports of every series that they have, at every k: of {k: {"mean": …}}."""

    def is_series(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and bool(value)
            and all(isinstance(cell, dict) and "mean" in cell for cell in value.values())
        )

    return {
        name: {k: round(float(np.mean([r[name][k]["mean"] for r in reports])), 5) for k in value}
        for name, value in reports[0].items()
        if is_series(value)
    }


def main() -> None:
    """Runs every seed in a temporary directory."""
    reports, seconds = [], []
    for seed in map(int, _SEEDS.value):
        config = copy.deepcopy(_CONFIG.value)
        config.seed = seed
        if isinstance(config.data, Styles | Chat | Synthetic):
            config.data.split_seed = seed
        with tempfile.TemporaryDirectory() as directory:
            start = time.perf_counter()
            train(config, Path(directory))
            reports.append(evaluate_workdir(Path(directory)))
            seconds.append(round(time.perf_counter() - start, 1))
    out = mean_series(reports)
    if "bayes" in out:
        out["accuracy_minus_bayes_by_seed"] = {
            k: [round(r["accuracy"][k]["mean"] - r["bayes"][k]["mean"], 5) for r in reports] for k in out["bayes"]
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(
        json.dumps(
            {
                "config": _CONFIG.value.name,
                "seeds": _SEEDS.value,
                "seconds_by_seed": seconds,
                "machine": machine,
                "device": reports[0]["run"].get("devices"),
                **out,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    program.run(main, __doc__ or "")
