"""NP-BTL and NP-DPO on `chat`, for `benchmarks.policies --what=chat`: training, evaluation and the figures compared."""

import time
from pathlib import Path
from typing import Any

from configs.chat import get_config
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train

_SERIES = ("accuracy", "steering", "bayes_steering", "control_steering", "population")
_QUALITY = ("words", "finished", "nll_per_token", "topic", "distinct", "without_loops", "reward", "kl")


def run(seed: int, room: Path, variant: str) -> dict[str, Any]:
    """Trains a reward model, a LoRA and a policy on it, where they are not in `room` yet; evaluates two of them."""
    tuned = "sft_small" if variant.endswith("small") else "sft"
    reward, base, policy = (room / f"chat-{name}-{seed}" for name in ("reward", tuned, variant))
    out: dict[str, Any] = {"seed": seed}
    for path, name in ((reward, "np_btl"), (base, tuned), (policy, variant)):
        config: Any = get_config(name)
        config.seed = config.data.split_seed = seed
        if path == policy:
            config.encoder.init_from, config.policy.base = str(reward), str(base / "model")
        begun = time.perf_counter()
        train(config, path)
        trained = time.perf_counter()
        if path == base:
            out[name] = {"seconds_of_training": round(trained - begun)}
            continue
        report = evaluate_workdir(path)
        out[name] = figures(report) | {
            "seconds_of_training": round(trained - begun),
            "seconds_of_evaluation": round(time.perf_counter() - trained),
        }
    return out


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report that are compared, in points, with the ends of their 95 % intervals."""

    def cell(value: dict[str, float]) -> list[float]:
        return [round(100 * value[part], 1) for part in ("mean", "low", "high")]

    out: dict[str, Any] = {
        name: {k: cell(value) for k, value in report[name].items()} for name in _SERIES if report.get(name)
    }
    generation = report.get("generation")
    if not generation:
        return out
    rows = {name: generation[name] for name in ("base", "population") if name in generation}
    rows |= {f"k = {k}": its for k, its in generation["policy"].items()}
    for name, of_n in generation.get("best_of", {}).items():
        rows |= {f"{name}, best of {n}": its for n, its in of_n.items() if isinstance(its, dict)}
    out["written"] = {}
    for name, its in rows.items():
        mine = {key: round(its[key], 3) for key in _QUALITY if its.get(key) is not None}
        if its.get("attribute_movement"):
            mine["movement"] = cell(its["attribute_movement"])
            mine["by_attribute"] = {a: cell(its["attributes"][a]["movement"]) for a in its["attributes"]}
        elif its.get("movement") is not None:
            mine["movement"] = round(100 * its["movement"], 1)
        out["written"][name] = mine
    out["responses"] = generation["responses"]
    return out
