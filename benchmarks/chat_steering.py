"""NP-BTL and NP-DPO on `chat`, with a real chat model, next to the Bayes limit. Prints JSON.

  python -m benchmarks.chat_steering --room=runs/chat_steering --seeds=0,1,2 [--variant=np_dpo]

Per seed: a reward model and a policy from configs/chat.py, with people of their own. What is printed is S(k) of both,
next to the Bayes S(k) of the same people and to the shuffled control; how far what is written moves between people of
opposite weights, with a 95 % interval over people and prompts, next to the base, to the policy of everybody and to the
best of n plain samples; and the quality of what is written, next to the base's own. Finished training in --room is not
repeated.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from configs.chat import get_config
from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "one reward model and one policy each")
_VARIANT = flags.DEFINE_enum("variant", "np_dpo_small", ["np_dpo_small", "np_dpo"], "of the policy")
_ROOM = flags.DEFINE_string("room", "", "directory for the work directories; default: a temporary one")
_PEOPLE = flags.DEFINE_integer("people", 0, "people to write for; 0 for as many as the configuration says", 0)
_PROMPTS = flags.DEFINE_integer("prompts", 0, "prompts per person; 0 for as many as the configuration says", 0)
flags.adopt_module_key_flags(program)

_SERIES = ("accuracy", "steering", "bayes_steering", "control_steering", "population")
_QUALITY = ("words", "finished", "nll_per_token", "topic", "distinct", "without_loops", "reward", "kl")


def run(seed: int, room: Path) -> dict[str, Any]:
    """Trains what is not there yet, and evaluates it."""
    reward, policy = room / f"reward-{seed}", room / f"policy-{seed}"
    out: dict[str, Any] = {"seed": seed}
    for path, variant in ((reward, "np_btl"), (policy, _VARIANT.value)):
        config: Any = get_config(variant)
        config.seed = config.data.split_seed = seed
        if path == policy:
            config.encoder.init_from = str(reward)
            generate = config.evaluate.generate
            generate.people, generate.prompts = _PEOPLE.value or generate.people, _PROMPTS.value or generate.prompts
        begun = time.perf_counter()
        train(config, path)
        trained = time.perf_counter()
        report = evaluate_workdir(path)
        out[variant] = figures(report) | {
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


def main() -> None:
    """Measures every seed."""
    seeds = [int(seed) for seed in _SEEDS.value if seed.isdigit()]
    if len(seeds) < len(_SEEDS.value) or not seeds:
        raise UserError(f"--seeds: give numbers from 0 up, got {','.join(_SEEDS.value)!r}")
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(_ROOM.value or scratch)
        for seed in seeds:
            print(json.dumps(run(seed, room), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    program.run(main, __doc__ or "")
