"""Single training steps of policies, to look at."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fssa_jax.config import Film, Lora, LoraCore, PolicyConfig
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.policy import TEACHER, PolicyTask
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.state import TrainState, start_state
from fssa_jax.train.step import Step, draw_rows, make_step

ADAPTERS = {"film": Film, "lora_core": LoraCore, "lora": Lora}


def with_encoder(config: PolicyConfig, kind: type, **settings: Any) -> PolicyConfig:
    """A copy of the configuration with an encoder of this kind, of the same reward model."""
    names = [field.name for field in dataclasses.fields(kind)]
    same = {name: getattr(config.encoder, name) for name in names if name in ("init_from", "model")}
    return copy.deepcopy(dataclasses.replace(config, encoder=kind(**{**same, **settings})))


def with_adapter(config: PolicyConfig, kind: str, **settings: Any) -> PolicyConfig:
    """A copy of the configuration with an adapter of this kind."""
    config = copy.deepcopy(config)
    config.policy.adapter = ADAPTERS[kind](**settings)
    return config


def start(task: PolicyTask, optimizer: optax.GradientTransformation, moved: bool = False) -> TrainState:
    """The state at the start of training; `moved` away from adapters that are the identity."""
    teacher = teacher_variables(task.config)
    variables = task.start(MAIN, {} if teacher is None else {TEACHER: teacher})
    if moved:
        variables = copy_with(variables, hyper=jax.tree.map(lambda x: x + 0.1, variables["params"]["hyper"]))
    return start_state(variables, optimizer)


def copy_with(variables: Any, **params: Any) -> Any:
    """Variables with some of their parameters replaced."""
    return {**variables, "params": {**variables["params"], **params}}


def step_of(
    task: Any, optimizer: optax.GradientTransformation, plan: Plan | None = None, axis_name: str | None = None
) -> Step:
    """The step of a task's main model as the training takes it."""
    return make_step(
        task.loss(MAIN, plan),
        task.draw(MAIN),
        optimizer,
        users=task.rows,
        seed=task.config.seed,
        accumulate=task.config.train.accumulate,
        average_decay=task.config.optim.average_decay,
        axis_name=axis_name,
    )


def rows_of(task: Any, step: Any, tables: Any) -> Any:
    """The rows of a step's batch of a task's main model."""
    return draw_rows(task.draw(MAIN), task.config.seed, step, task.rows, tables)[0]


def first_rows(task: Any, tables: Any) -> Any:
    """The rows of the first batch."""
    return jax.jit(lambda tables: rows_of(task, jnp.int32(0), tables))(tables)
