"""A data set and a configuration small enough to train in seconds; the whole road runs on them."""

import json
from pathlib import Path

import numpy as np

from fssa_jax.config import BayesEncoder, NormalPrior, NpBtl, RewardConfig, Rows, SetEncoder
from fssa_jax.data import build
from fssa_jax.data.dataset import Dataset
from fssa_jax.files import with_checksum
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import resolve

STEPS = 20


def rows(users: int = 24, number: int = 14, seed: int = 0) -> list[dict]:
    """Users of two kinds, who like long or short answers."""
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(30)]
    out = []
    for u in range(users):
        for i in range(number):
            short, long = (" ".join(rng.choice(words, n)) for n in (3, 9))
            a, b = (short, long) if rng.random() < 0.5 else (long, short)
            likes_long = u % 2 == 0
            out.append(
                {
                    "user_id": f"u{u}",
                    "prompt": f"question {i}",
                    "response_a": a,
                    "response_b": b,
                    "choice": int((b == long) == likes_long),
                    "group": "long" if likes_long else "short",
                }
            )
    return out


def write_rows(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def config(path: Path | str = "", **train: int) -> RewardConfig:
    """Rows, a bilinear model with a Gaussian latent, STEPS steps in calls of 5."""
    c = RewardConfig(name="tiny", data=Rows(path=str(path), components=8, features="tfidf"))
    c.model = NpBtl(encoder=SetEncoder(width=8, latent_dim=8, heads=2, gaussian=True), width=8, head="bilinear")
    c.optim.learning_rate, c.optim.warmup_steps = 1e-2, 2
    settings = {
        "users": 8,
        "max_context": 3,
        "targets": 3,
        "steps": STEPS,
        "steps_per_call": 5,
        "validate_every": 10,
        "checkpoint_every": 5,
        "population_steps": 5,
        "specialist_steps": 5,
        **train,
    }
    for name, value in settings.items():
        setattr(c.train, name, value)
    c.evaluate.k, c.evaluate.draws, c.evaluate.samples, c.evaluate.bootstrap = (0, 1, 3), 2, 4, 50
    c.evaluate.shuffles = 2
    return c


def auto_config(path: Path | str = "", **train: int) -> RewardConfig:
    """`config` with a model that is chosen on validation people, and calibrated."""
    c = config(path, **train)
    c.auto = "yes"
    c.model = NpBtl(
        encoder=BayesEncoder(prior=NormalPrior(rounds=2), gaussian=True),
        response="linear",
        width=6,
        head="bilinear",
        population="linear",
        keep_population=True,
        feature_scale=0.0,
    )
    c.objective.kind, c.objective.kl_weight, c.objective.samples = "predictive", 0.0, 4
    c.optim.final_fraction, c.optim.weight_decay = 1.0, 0.0
    return c


def reseal(workdir: Path) -> None:
    """Makes a change of config.json or run.json look as if the program had written it."""
    for name in ("run.json", "config.json"):
        values = json.loads((workdir / name).read_text())
        values.pop("crc32", None)
        (workdir / name).write_text(json.dumps(with_checksum(values)))


def load_dataset(c: RewardConfig) -> Dataset:
    """The data set of a configuration."""
    return build.load_dataset(c.data, max(c.evaluate.k), c.train.targets)


def task(directory: Path, **train: int) -> RewardTask:
    """`config` on `rows`, with its data."""
    c = config(write_rows(directory / "rows.jsonl", rows()), **train)
    dataset = load_dataset(c)
    return RewardTask(resolve(c, dataset, quiet=True), dataset)
