"""Trains one model of an experiment to its end, or resumes it."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np

from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.experiment.workdir import AnyTask, Workdir
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.sft import SftTask
from fssa_jax.train import parallel
from fssa_jax.train.batches import padded_calls, plain_calls
from fssa_jax.train.loop import Run, StopSignal, run_to_end
from fssa_jax.train.profile import Steps
from fssa_jax.train.state import learning_rates, start_state
from fssa_jax.train.step import draw_rows, make_step
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

Validate = Callable[[PyTree], tuple[dict[str, float], list[str]]]


def fit(
    work: Workdir, name: str, trained: Mapping[str, PyTree], stop: StopSignal, traced: Steps | None = None
) -> PyTree:
    """Trains one model of a task to its end, or resumes it, and returns its best variables by validation.

    The profiler traces the steps `traced`.
    """
    task, settings = work.task, work.config.train
    mode = parallel.resolve(settings.parallel, task.rows)
    axis_name = parallel.AXIS if mode == "pmap" else None
    optimizer, draw, tables = task.optimizer(name), task.draw(name), task.tables("train")

    def step(plan=None):
        return make_step(
            task.loss(name, plan),
            draw,
            optimizer,
            users=task.rows,
            seed=work.config.seed,
            accumulate=settings.accumulate,
            average_decay=work.config.optim.average_decay,
            axis_name=axis_name,
        )

    rows_of = jax.jit(lambda number, tables: draw_rows(draw, work.config.seed, number, task.rows, tables)[0])
    if isinstance(task, PolicyTask | SftTask):
        advance = padded_calls(
            step,
            lambda number, tables: task.texts(rows_of(number, tables)),
            tables,
            mode,
            steps=task.steps(name),
            steps_per_call=settings.steps_per_call,
            accumulate=settings.accumulate,
            buckets=settings.length_buckets,
        )
    else:
        advance = plain_calls(step(), tables, mode)

    start = partial(start_state, optimizer=optimizer, average=work.config.optim.average_decay > 0)
    run = Run(
        name=name,
        steps=task.steps(name),
        state=parallel.replicate(jax.jit(start)(task.start(name, trained)), mode),
        advance=advance,
        validate=validation(task, name),
        culprits=lambda number: task.whose(rows_of(np.int32(number - 1), tables)),
        learning_rate=learning_rates(task.optim(name), task.steps(name)),
    )
    return run_to_end(run, settings, work.directory(name), stop, traced)


def validation(task: AnyTask, name: str) -> Validate:
    """The validation function of a model: scores on held-out people, or for a base on held-out texts."""
    if isinstance(task, SftTask):
        return task.validate
    split = task.dataset.splits["val"]
    predictor = task.predictor(name, split)
    some: dict[str, int] = {}
    if isinstance(task, PolicyTask):
        train = task.config.train
        some = {"users": train.validation_users, "targets": train.validation_targets}
    held_out = HeldOut.of(split, task.config.evaluate.k, reads=task.reads(name), **some)
    if some:
        said = "%s: each validation scores %d sequences (config.train.validation_users, validation_targets)"
        _log.info(said, name, held_out.sequences)
    return lambda variables: held_out.scores(predictor(variables))
