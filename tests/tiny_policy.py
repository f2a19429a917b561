"""A language model, a policy and its configuration, small enough to train in seconds."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax

from fssa_jax.config import FrozenEncoder, NewEncoder, PolicyConfig, SftConfig
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.types import PyTree
from tests import small_lm, tiny

STEPS = 4


def base(directory: Path, template: str = small_lm.TEMPLATE) -> Path:
    """A random language model of two layers that reads the words of `tiny.rows`."""
    sizes = {"layers": 2, "width": 16, "heads": 2, "groups": 1, "head_dim": 8, "mlp_width": 24, "max_length": 256}
    small_lm.save_decoder(directory, template, **sizes)
    return directory


def _loop(config: Any, **train: int) -> None:
    settings = {"steps": STEPS, "steps_per_call": 2, "validate_every": 2, "checkpoint_every": 2, **train}
    for name, value in settings.items():
        setattr(config.train, name, value)


def config(rows: Path | str, base: Path | str, reward: Path | str = "", **train: int) -> PolicyConfig:
    """NP-DPO by FiLM on the rows of `tiny`; its encoder is that of a reward model trained on them, or new."""
    like = tiny.config(rows)
    c = PolicyConfig(name="tiny policy", data=like.data, optim=like.optim)
    c.encoder = FrozenEncoder(init_from=str(reward)) if reward else NewEncoder(model=like.model)  # type: ignore[arg-type]
    c.policy.base, c.policy.max_length = str(base), 128
    sizes = {"users": 4, "max_context": 3, "targets": 2, "population_steps": 2, "specialist_steps": 2}
    _loop(c, **{**sizes, **train})
    e = c.evaluate
    e.k, e.draws, e.bootstrap, e.shuffles, e.users, e.targets = (0, 1, 3), 1, 20, 1, 6, 3
    e.in_context_users, e.generate.people, e.generate.prompts, e.generate.max_new = 2, 4, 1, 8
    e.generate.best_of, e.generate.best_of_prompts, e.generate.topic_encoder = (2, 3), 2, ""
    return c


def sft_config(rows: Path | str, base: Path | str = "", **train: int) -> SftConfig:
    """Fine-tuning of a base on the texts of `tiny`."""
    like = tiny.config(rows)
    c = SftConfig(name="tiny sft", data=like.data, optim=like.optim)
    c.policy.base, c.policy.max_length = str(base), 128
    _loop(c, **{"texts": 4, **train})
    return c


def change(config: Any, settings: dict[str, Any]) -> Any:
    """Sets dotted keys."""
    for key, value in settings.items():
        target = config
        *path, last = key.split(".")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return config


def moved(variables: PyTree) -> PyTree:
    """The variables of a policy, away from the identity so that the person matters."""
    hyper = variables["params"]["hyper"]
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(hyper)))
    noise = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(jax.tree.leaves(hyper), keys, strict=True)]
    return {"params": {**variables["params"], "hyper": jax.tree.unflatten(jax.tree.structure(hyper), noise)}}


def with_encoder(task: PolicyTask, encoder: Any, **model: Any) -> PolicyTask:
    """The task with a new encoder, whose reward model has other settings."""
    settings = dataclasses.replace(task.config.encoder.model, encoder=encoder, **model)
    config = dataclasses.replace(copy.deepcopy(task.config), encoder=NewEncoder(model=settings))
    return dataclasses.replace(task, config=config)
