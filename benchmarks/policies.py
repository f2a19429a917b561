"""Policies on `styles` and on real people: steering, movement and true reward of every adapter kind. Prints JSON.

  python -m benchmarks.policies --what=steering --kinds=film,lora_core,lora --seeds=0,1,2
  python -m benchmarks.policies --what=ablation [--entry="beta 1" --entry="no SFT term"]
  python -m benchmarks.policies --what=limit --room=DIR --kinds=lora --seeds=0,1,2
  python -m benchmarks.policies --what=polis --data=polis.jsonl.gz --split=test --seeds=0
  python -m benchmarks.policies --what=chat --seeds=0,1,2 [--variant=np_dpo] [--room=DIR]

steering: base model, reward model and policy from the shipped configurations, each seed with users, targets and
contexts of its own; S(k) next to the Bayes S(k) of the same people, the shuffled control, the population's policy, and,
with --specialists, the specialists; with --unread, of bases that know less. limit: S versus the Bayes limit, and the
controls, of policies that --what=steering left in --room, on all 1,000 held-out people of each seed. ablation: one
seed, one setting changed at a time. polis: real people; a small base made of their statements, configs/rows.py:np_dpo
on it, accuracies and gains over the population's policy in points with 95 % intervals over people, next to those of the
reward model on the same people.

chat: a real chat model (configs/chat.py). S(k) of the reward model and of the policy next to the Bayes S(k) of the same
people and to the shuffled control. How far what is written moves between people of opposite weights, with a 95 %
interval over people and prompts, next to the base, to the policy of everybody and to the best of n plain samples. The
quality of what is written, next to the base's own.

What is shipped for `styles` was chosen on seeds 0, 1 and 2.
"""

import copy
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import chat_steering
from configs import rows
from configs.styles import get_config
from fssa_jax import program
from fssa_jax.config import NewEncoder, NormalPrior, SetEncoder, WarmEncoder
from fssa_jax.errors import UserError
from fssa_jax.evaluate.evaluate import evaluate
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir

_WHAT = flags.DEFINE_enum("what", "steering", ["steering", "limit", "ablation", "polis", "chat"], "what to measure")
_KINDS = flags.DEFINE_list("kinds", ["film", "lora_core", "lora"], "adapter kinds")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "one base, reward model and policy each")
_SPECIALISTS = flags.DEFINE_bool("specialists", False, "train and score the specialists too")
_UNREAD = flags.DEFINE_enum(
    "unread",
    "nothing",
    ["nothing", "targets", "topics"],
    "what the bases of --what=steering and --what=limit have not read (config.train.unread)",
)
_ENTRIES = flags.DEFINE_multi_string("entry", [], "name of what --what=ablation changes; default: all of them")
_DATA = flags.DEFINE_string("data", None, "rows of the Polis data, for --what=polis")
_SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "whom --what=polis scores")
_VARIANT = flags.DEFINE_enum("variant", "np_dpo_small", ["np_dpo_small", "np_dpo"], "the policy of --what=chat")
_ROOM = flags.DEFINE_string("room", "", "directory for the work directories; default: a temporary one")

# One thing changed at a time, from lora_core as it is shipped with half as many steps. A "kind" is another adapter, as
# it is shipped; "base" and "reward" change the language model and the reward model that it starts from.
_HALF = {
    "train.steps": 300,
    "train.population_steps": 0,
    "train.validate_every": 100,
    "evaluate.shuffles": 1,
    "evaluate.generate.people": 64,
    "evaluate.generate.top_p": 1.0,  # every token that is possible: what is written badly is seen
}
_CHOICES = {"encoder.distil": 0.0, "encoder.imitate": "chosen"}  # of the reward model nothing but its encoder
_COLD = {"encoder": NewEncoder(model=get_config("np_btl").model)}  # type: ignore[union-attr, arg-type]
ABLATIONS: dict[str, dict[str, Any]] = {
    "lora_core": {},
    "a normal prior": {"reward": {"model.encoder.prior": NormalPrior(rounds=2), "optim.learning_rate": 3e-3}},
    "a base that has not read the target prompts": {"base": {"train.unread": "targets"}},
    "a base that has not read the held-out topics": {"base": {"train.unread": "topics"}},
    "imitates by advantage": {"encoder.imitate": "advantage"},
    "imitates what was chosen": {"encoder.imitate": "chosen"},
    "no SFT term": {"encoder.imitate": "chosen", "objective.sft_weight": 0.0},
    "choices for labels": _CHOICES,
    "choices for labels, encoder trained on": {"encoder": WarmEncoder()},
    "choices for labels, encoder from random init": _COLD,
    "beta 1": {"objective.beta": 1.0},
    "beta 1/2": {"objective.beta": 0.5},
    "beta .1": {"objective.beta": 0.1},
    "32 people of 2 choices": {"train.users": 32, "train.targets": 2},
    "a diagonal core": {"policy.adapter.core": "diagonal"},
    "a LoRA of everybody next to it": {"policy.adapter.shared.rank": 8},
    "lora": {"kind": "lora"},
    "film": {"kind": "film"},
    "film linear in z": {"kind": "film", "policy.adapter.hidden": 0},
    "film on the residual stream alone": {"kind": "film", "policy.adapter.places": ("residual",)},
    "published recipe": {
        **_COLD,
        "kind": "film",
        "objective.beta": 0.05,
        "objective.sft_weight": 0.0,
        "policy.adapter.hidden": 0,
        "policy.adapter.places": ("residual",),
        "policy.adapter.shared.rank": 8,
        "optim.learning_rate": 1e-3,
        "train.users": 32,
        "train.targets": 2,
        "encoder.model.encoder": SetEncoder(width=32, latent_dim=32, residual=False, pool="sum", prior_choice=False),
    },
}


def change(config: Any, settings: dict[str, Any]) -> Any:
    """The configuration with some of its settings changed, by the names of their keys."""
    for key, value in settings.items():
        *path, last = key.split(".")
        target = config
        for name in path:
            target = getattr(target, name)
        if not hasattr(target, last):
            raise UserError(f"config.{key}: no such setting")
        setattr(target, last, copy.deepcopy(value))
    return config


@dataclasses.dataclass
class Changes:
    """Settings that differ from those that are shipped: of the policy, of its base, and of its reward model."""

    policy: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    reward: dict[str, Any] = dataclasses.field(default_factory=dict)


def ablated(settings: dict[str, Any]) -> tuple[str, Changes]:
    """(adapter kind, all that is changed) of an entry of ABLATIONS."""
    changes = {"kind": "lora_core", "base": {}, "reward": {}, **_HALF, **settings}
    kind, base, reward = (changes.pop(name) for name in ("kind", "base", "reward"))
    return kind, Changes(changes, base, reward)


def start(seed: int, room: Path, changes: Changes) -> tuple[Path, Path]:
    """(base, reward work directory) of a seed, made once."""
    made = []
    for name, variant, its in (("base", "sft", changes.base), ("reward", "np_btl", changes.reward)):
        config: Any = get_config(variant)
        config.seed = config.data.split_seed = seed
        if name == "reward":
            config.train.specialist_steps = 0
        made.append(room / "-".join([name, str(seed), *(f"{key}={value}" for key, value in its.items())]))
        train(change(config, its), made[-1])
    return made[0] / "model", made[1]


def policy(kind: str, seed: int, room: Path, name: str, changes: Changes) -> dict[str, Any]:
    """Trains and evaluates one policy; the figures of its report that are compared."""
    base, reward = start(seed, room, changes)
    config: Any = get_config(f"np_dpo_{kind}")
    config.seed = config.data.split_seed = seed
    config.policy.base = str(base)
    if not _SPECIALISTS.value:
        config.train.specialist_steps = 0
    config.evaluate.users, config.evaluate.targets, config.evaluate.generate.people = 200, 12, 192
    config.evaluate.in_context_users = 16 if _SPECIALISTS.value else 0
    change(config, changes.policy)
    if not isinstance(config.encoder, NewEncoder):
        config.encoder.init_from = str(reward)
    begun = time.perf_counter()
    train(config, room / name)
    seconds = time.perf_counter() - begun
    report = evaluate_workdir(room / name)
    means = {
        key: {k: round(100 * cell["mean"], 1) for k, cell in report[key].items()}
        for key in (
            "steering",
            "bayes_steering",
            "control_steering",
            "scrambled_steering",
            "specialist_steering",
            "steering_gap",
            "in_context_steering",
            "accuracy",
            "population",
        )
        if report.get(key)
    }
    written = report["generation"]["policy"]

    def ends(name: str) -> dict[str, list[float]]:
        return {k: [round(100 * cell[part], 1) for part in ("low", "high")] for k, cell in report[name].items()}

    return {
        "seconds_of_training": round(seconds),
        **means,
        **{
            f"interval_of_{name}": ends(name)
            for name in ("steering", "steering_gap", "control_steering", "scrambled_steering")
        },
        "movement": {k: round(100 * out["movement"], 1) for k, out in written.items()},
        "well_formed": {k: round(100 * out["well_formed"], 1) for k, out in written.items()},
        "movement_at_temperature_1": {k: round(100 * out["plain_movement"], 1) for k, out in written.items()},
        "well_formed_at_temperature_1": {k: round(100 * out["plain_well_formed"], 1) for k, out in written.items()},
        "kl": {k: round(out["kl"], 2) for k, out in written.items()},
        "reward": {k: round(out["reward"], 2) for k, out in written.items()},
        "specialists": {
            name: round(report["generation"]["specialist"][name], 3)
            for name in ("reward", "kl", "well_formed", "movement")
        }
        if "specialist" in report["generation"]
        else None,
        "share_of_specialists_reward": {k: out.get("reward_of_specialists") for k, out in written.items()},
        "share_of_who_knows": {k: out.get("reward_of_known") for k, out in written.items()},
        "bayes_share_of_who_knows": {k: out.get("bayes_reward_of_known") for k, out in written.items()},
        "blend": report["generation"]["blend"].get("towards_first"),
        "latent": {
            name: {k: round(value, 3) for k, value in report["latent"][name].items()}
            for name in ("norm", "norm_scrambled", "norm_contradicted", "bayes", "bayes_scrambled")
        },
    }


def _name(kind: str, seed: str) -> str:
    """Of the work directory of a policy in --room."""
    return f"{kind}-{seed}" if _UNREAD.value == "nothing" else f"{kind}-{seed}-without-{_UNREAD.value}"


def steering(room: Path) -> dict[str, Any]:
    """Every adapter kind over the seeds."""
    out: dict[str, Any] = {}
    for kind in _KINDS.value:
        changes = Changes(base={} if _UNREAD.value == "nothing" else {"train.unread": _UNREAD.value})
        runs = [policy(kind, int(seed), room, _name(kind, seed), changes) for seed in _SEEDS.value]
        mean = {
            key: {k: round(float(np.mean([run[key][k] for run in runs])), 1) for k in runs[0][key]}
            for key in (
                "steering",
                "bayes_steering",
                "steering_gap",
                "control_steering",
                "scrambled_steering",
                "specialist_steering",
                "movement",
                "well_formed",
                "movement_at_temperature_1",
                "well_formed_at_temperature_1",
            )
            if key in runs[0]
        }
        mean["share_of_bayes"] = {
            k: round(s / mean["bayes_steering"][k], 3) for k, s in mean["steering"].items() if k != "0"
        }
        out[kind] = {"mean": mean, "seeds": runs}
        print(json.dumps({kind: out[kind]["mean"]}), flush=True)
    return out


def limit(room: Path) -> dict[str, Any]:
    """S of trained policies less that of the Bayes limit, paired within all held-out people: ten choices of each.

    Next to it S with another person's context and with a mixed one.
    """
    out: dict[str, Any] = {}
    for kind in _KINDS.value:
        for seed in _SEEDS.value:
            work = Workdir.open(room / _name(kind, seed))
            settings = dataclasses.replace(work.config.evaluate, k=(1, 3, 5, 10), shuffles=1)
            found, split = work.trained(), work.dataset.splits["test"]
            assert found is not None
            main = work.task.predictor("main", split)(found[0])
            report = evaluate(main, split, work.dataset, settings, seed=work.config.seed, max_targets=10).report
            out[f"{kind} {seed}"] = {
                name: {k: [round(100 * cell[part], 1) for part in ("mean", "low", "high")] for k, cell in its.items()}
                for name in ("steering", "bayes_steering", "steering_gap", "control_steering", "scrambled_steering")
                if (its := report[name])
            }
            print(json.dumps({f"{kind} {seed}": out[f"{kind} {seed}"]}), flush=True)
        gaps = [out[f"{kind} {seed}"]["steering_gap"] for seed in _SEEDS.value]
        out[kind] = {k: round(float(np.mean([gap[k][0] for gap in gaps])), 2) for k in gaps[0]}
    return out


def ablation(room: Path) -> dict[str, Any]:
    """One setting changed at a time."""
    out = {}
    for i, (name, settings) in enumerate(ABLATIONS.items()):
        if _ENTRIES.value and name not in _ENTRIES.value:
            continue
        kind, changes = ablated(settings)
        run = policy(kind, int(_SEEDS.value[0]), room, f"ablation-{i}", changes)
        keys = (
            "steering",
            "bayes_steering",
            "steering_gap",
            "movement",
            "well_formed",
            "reward",
            "kl",
            "seconds_of_training",
        )
        out[name] = {key: run[key] if not isinstance(run[key], dict) else run[key]["10"] for key in keys}
        print(json.dumps({name: out[name]}), flush=True)
    return out


def polis(room: Path) -> dict[str, Any]:
    """Real people, seed by seed."""
    out: dict[str, Any] = {"split": _SPLIT.value}
    for seed in map(int, _SEEDS.value):
        paths = {name: room / f"polis-{name}-{seed}" for name in ("np_btl", "sft", "np_dpo")}
        for variant, path in paths.items():
            config: Any = rows.get_config(variant)
            config.seed, config.data.path = seed, _DATA.value
            if variant != "sft":
                config.evaluate.k, config.evaluate.draws, config.evaluate.shuffles = (0, 5, 10, 20), 1, 1
                config.train.specialist_steps = 0
            if variant != "np_btl":
                config.policy.max_length = 96
            if variant == "np_dpo":
                config.policy.base, config.encoder.init_from = str(paths["sft"] / "model"), str(paths["np_btl"])
                # All that the reward model is scored on.
                config.evaluate.users = config.evaluate.targets = 10_000
                config.evaluate.in_context_users = 0
                config.evaluate.generate.people = 0
            begun = time.perf_counter()
            train(config, path)
            out.setdefault("seconds_of_training", {})[f"{variant} {seed}"] = round(time.perf_counter() - begun)
        reports = {
            "policy": evaluate_workdir(paths["np_dpo"], split=_SPLIT.value),
            "reward model": evaluate_workdir(paths["np_btl"], split=_SPLIT.value),
        }
        for name, report in reports.items():
            series = {
                key: {k: [round(100 * cell[part], 2) for part in ("mean", "low", "high")] for k, cell in its.items()}
                for key in ("accuracy", "population", "gain", "control_gain")
                if (its := report[key])
            }
            out[f"{name} {seed}"] = {"people": report["users"]["scored"], **series}
        print(json.dumps(out), flush=True)
    return out


def _refuse_unused() -> None:
    """A flag that a measurement does not read is a mistake."""
    used = {
        "steering": ("kinds", "specialists", "unread"),
        "limit": ("kinds", "unread"),
        "ablation": ("entry",),
        "polis": ("data", "split"),
        "chat": ("variant",),
    }
    for name in ("kinds", "specialists", "unread", "entry", "data", "split", "variant"):
        if flags.FLAGS[name].present and name not in used[_WHAT.value]:
            raise UserError(f"--{name}: --what={_WHAT.value} does not use it; leave it out")
    unknown = [name for name in (_ENTRIES.value if _WHAT.value == "ablation" else ()) if name not in ABLATIONS]
    if unknown:
        raise UserError(f"--entry: no entry {unknown[0]!r}; there are: {'; '.join(ABLATIONS)}")
    if _WHAT.value == "limit" and not flags.FLAGS["room"].value:
        raise UserError("--room: name the directory where --what=steering left its policies")
    if _WHAT.value == "polis" and not _DATA.value:
        raise UserError("--data: give the rows of the Polis data (README: where real people come from)")


def chat(room: Path) -> dict[str, Any]:
    """A real chat model, seed by seed."""
    out: dict[str, Any] = {}
    for seed in map(int, _SEEDS.value):
        out[str(seed)] = chat_steering.run(seed, room, _VARIANT.value)
        print(json.dumps(out[str(seed)], ensure_ascii=False), flush=True)
    return out


def main() -> None:
    """Prints one JSON object."""
    _refuse_unused()
    with tempfile.TemporaryDirectory() as scratch:
        room = Path(_ROOM.value or scratch)
        out = {"steering": steering, "limit": limit, "ablation": ablation, "polis": polis, "chat": chat}[_WHAT.value](
            room
        )
        print(json.dumps({"devices": [d.device_kind for d in jax.devices()], **out}, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
