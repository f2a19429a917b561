"""Training of reward models: the population model, the model itself, the oracle."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from fssa_jax.config import reward as configs
from fssa_jax.config.reward import Config
from fssa_jax.data.dataset import Dataset, seen_in_training
from fssa_jax.evaluate.held_out import Validation
from fssa_jax.experiment.workdir import open_workdir, roles_of
from fssa_jax.ops.factorise import factorise, observed_responses
from fssa_jax.tasks.reward import make_draw, make_model, training_data
from fssa_jax.train import parallel
from fssa_jax.train.loop import Run, StopSignal, run_to_end
from fssa_jax.train.roles import Role, directory_of, steps_of
from fssa_jax.train.step import TrainState, init_state, make_optimizer, make_train_step, many_steps
from fssa_jax.types import PyTree


def fit(
    role: Role, config: Config, dataset: Dataset, directory: Path, stop: StopSignal, population: PyTree = None
) -> PyTree:
    """Trains one reward model to its end; see `loop.run_to_end`."""
    steps = steps_of(config.train, role)
    mode = parallel.resolve(config.train.parallel, config.train.users)
    axis_name = parallel.AXIS if mode == "pmap" else None
    model = make_model(config, dataset, role, axis_name)
    draw = make_draw(config, role)
    data = parallel.replicate(training_data(config, dataset), mode)
    optim = config.optim
    if role == "population" and config.train.population_learning_rate:
        optim = dataclasses.replace(optim, learning_rate=config.train.population_learning_rate)
    optimizer = make_optimizer(optim, steps)
    step_fn = make_train_step(
        model,
        optimizer,
        draw,
        config.objective,
        users=config.train.users,
        seed=config.seed,
        average_decay=config.optim.average_decay,
        axis_name=axis_name,
    )
    calls = {
        n: parallel.compile_steps(many_steps(step_fn, n), mode)
        for n in {config.train.steps_per_call, steps % config.train.steps_per_call}
        if n
    }
    average = config.optim.average_decay
    state = init_state(model, optimizer, config.seed, training_data(config, dataset), draw, average > 0)
    state = parallel.replicate(_warm_start(role, config, dataset, state, population), mode)
    validation = Validation(config, dataset, make_model(config, dataset, role))
    run = Run(role, steps, state, lambda state, _, n: calls[n](state, data), validation)
    return run_to_end(run, config.train, directory, stop)


def _warm_start(role: Role, config: Config, dataset: Dataset, state: TrainState, population: PyTree) -> TrainState:
    """Starts a model from the population's reward, and learnt texts from a factorisation, where it has them."""
    params = dict(state.params)
    seen = jnp.asarray(seen_in_training(dataset))[:, None]
    if "text_embedding" in params:  # what training never sees is known by its features alone
        params["text_embedding"] = {"embedding": jnp.where(seen, params["text_embedding"]["embedding"], 0)}
    if population:
        shared = population["params"]
        params |= {
            name: shared[name] for name in ("population_reward", "text_bias") if name in shared and name in params
        }
    if role == "main" and config.train.factor_steps:
        table = dataset.splits["train"].table
        user, text, liked = (jnp.asarray(x) for x in observed_responses(table))
        factors, offsets = factorise(
            jax.random.key(config.seed),
            user,
            text,
            liked,
            users=len(table.chosen),
            texts=len(dataset.texts),
            width=config.model.width,
            steps=config.train.factor_steps,
        )
        params["text_embedding"] = {"embedding": jnp.where(seen, factors, 0)}
        if "text_offset" in params:  # of an encoder that reads responses
            # The encoder's offset is s(y) plus this: together they are the factorisation's.
            model = make_model(config, dataset, role)
            everything = jnp.arange(len(dataset.texts))
            encoded = model.apply(
                {**state.variables, "params": params},
                everything,
                jnp.asarray(dataset.features),
                method="encode_responses",
            )
            already = encoded.offset[:, 0] - params["text_offset"]["embedding"][:, 0]  # type: ignore[union-attr]
            params["text_offset"] = {"embedding": jnp.where(seen, (offsets - already)[:, None], 0)}
    return dataclasses.replace(state, params=params, average=jax.tree.map(jnp.copy, params) if state.average else {})


def train(config: Config, workdir: Path) -> None:
    """Trains everything that evaluation compares, into `workdir`; a second call goes on or does nothing.

    Raises:
      Stopped: SIGTERM came, all is saved.
      UserError: see `fit`; also a workdir of another configuration.
    """
    configs.check(config)
    config, dataset = open_workdir(config, workdir)
    population = None
    with StopSignal() as stop:
        for role in roles_of(config, dataset):
            # A DPL reward has two outputs: nothing of the population's can be its start.
            start = None if role == "main" and config.model.kind == "dpl" else population
            params = fit(role, config, dataset, directory_of(workdir, role), stop, start)
            population = params if role == "population" else population
