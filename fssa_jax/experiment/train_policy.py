"""Training of policies: DPO of everybody, NP-DPO, the specialists; and supervised fine-tuning of a base."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from fssa_jax.config.policy import PolicyConfig, PolicyTrainConfig
from fssa_jax.errors import UserError
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.evaluate.policy_scores import PolicyScorer
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.warm_start import warm_encoder
from fssa_jax.lm.base import reference_log_probs
from fssa_jax.lm.safetensors import save_params
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.ops.padding import Plan, cheapest, few_plans
from fssa_jax.tasks.policy import PolicyData, batch_key, draw_batch, draw_texts, make_policy_step, make_sft_step
from fssa_jax.train import parallel
from fssa_jax.train.loop import Run, StopSignal, run_to_end
from fssa_jax.train.roles import Role, directory_of, steps_of
from fssa_jax.train.step import TrainState, make_optimizer, many_steps
from fssa_jax.types import Episode, PyTree

_log = logging.getLogger(__name__)

_TYPICAL_CALLS = 32  # whose texts tell how to pad
_VALIDATION_USERS, _VALIDATION_TARGETS, _VALIDATION_TEXTS = 128, 12, 256


def train(config: PolicyConfig, workdir: Path) -> None:
    """Trains everything that evaluation compares, into `workdir`; a second call goes on or does nothing.

    Raises:
      Stopped: SIGTERM came, all is saved.
      UserError: see `loop.run_to_end` and `PolicyWorkdir.make`.
    """
    work = PolicyWorkdir.make(config, workdir)
    with StopSignal() as stop:
        if work.config.is_sft:
            fit_base(work, stop)
            return
        for role in work.roles:
            fit_policy(work, role, stop)


def fit_policy(work: PolicyWorkdir, role: Role, stop: StopSignal) -> PyTree:
    """Trains what steers the base in a role; the base itself does not change."""
    config = work.config
    train = config.train
    mode = parallel.resolve(train.parallel, train.users)
    data = work.data("train")
    conditioner, optimizer, state = make_state(work, role, warm=True)
    step = partial(
        make_policy_step,
        conditioner,
        work.base.decoder,
        optimizer,
        config,
        axis_name=parallel.AXIS if mode == "pmap" else None,
    )

    def culprits(number: int) -> str:
        episode = _batch(config, conditioner, jnp.int32(number - 1), data)
        names = sorted({work.dataset.splits["train"].users[int(u)] for u in np.asarray(episode.user)})
        return f" (people {', '.join(names)})"

    ids = texts_of_batch(config, conditioner)
    advance = planned(step, ids, data, train, steps_of(train, role), mode)
    validate = _Validation(work, conditioner)
    run = Run(role, steps_of(train, role), parallel.replicate(state, mode), advance, validate, culprits)
    return run_to_end(run, train, directory_of(work.path, role), stop)


def _batch(config: PolicyConfig, conditioner: Conditioner, step: jax.Array, data: PolicyData) -> Episode:
    """The episodes of a step."""
    context = config.train.max_context if conditioner.latent == "context" else 0
    return draw_batch(batch_key(config.seed, step), data, config.train.users, context, config.train.targets)[0]


def texts_of_batch(
    config: PolicyConfig, conditioner: Conditioner
) -> Callable[[jax.Array, PolicyData], Int[Array, "users targets 2"]]:
    """(step, data) ↦ the texts of a step's batch, in the order in which they are scored."""

    def ids(step: jax.Array, data: PolicyData) -> jax.Array:
        targets = _batch(config, conditioner, step, data).targets
        return jnp.stack([targets.chosen, targets.rejected], axis=-1)

    return ids


def make_state(
    work: PolicyWorkdir, role: Role, warm: bool = False
) -> tuple[Conditioner, optax.GradientTransformation, TrainState]:
    """What steers the base in a role, its optimiser, and the state at the start; `warm` with the trained encoder."""
    config = work.config
    conditioner = work.conditioner(role)
    optimizer = make_optimizer(config.optim, steps_of(config.train, role))
    if conditioner.frozen:
        optimizer = _only("reward", optax.set_to_zero(), optimizer)
    state = init_conditioner(conditioner, optimizer, config, work.data("train"))
    trained = warm_encoder(config) if warm and conditioner.latent == "context" else None
    if trained is not None:
        state = _with_encoder(state, optimizer, trained.variables)
    return conditioner, optimizer, state


def init_conditioner(
    conditioner: Conditioner, optimizer: optax.GradientTransformation, config: PolicyConfig, data: PolicyData
) -> TrainState:
    """Random parameters, a function of the seed, that leave the base as it is."""
    episode, _ = draw_batch(jax.random.key(0), data, 2, config.train.max_context, config.train.targets)

    def init(key: jax.Array, episode: Episode, features: jax.Array) -> TrainState:
        variables: Any = conditioner.init(key, episode, features)
        return new_state(
            variables["params"], variables.get("batch_stats", {}), optimizer, config.optim.average_decay > 0
        )

    return jax.jit(init)(jax.random.key(config.seed), episode, data.features)


def new_state(params: PyTree, stats: PyTree, optimizer: optax.GradientTransformation, average: bool) -> TrainState:
    """The state at step 0; `average` keeps an average of the parameters beside them."""
    kept = jax.tree.map(jnp.copy, params) if average else {}
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), kept)


def _with_encoder(state: TrainState, optimizer: optax.GradientTransformation, reward: PyTree) -> TrainState:
    """The state with the parameters of a trained reward model."""
    ours, theirs = state.params["reward"], reward["params"]
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise UserError(
            "config.encoder.init_from: its model has other sizes than these data ask for; give the same data"
        )
    params = {**state.params, "reward": jax.tree.map(jnp.asarray, theirs)}
    stats = {"reward": jax.tree.map(jnp.asarray, reward["batch_stats"])} if "batch_stats" in reward else {}
    return new_state(params, stats, optimizer, bool(state.average))


def _only(
    name: str, its: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimiser for the parameters under a name, another for the rest."""

    def label(params: PyTree) -> PyTree:
        return {
            key: jax.tree.map(lambda _, key=key: "its" if key == name else "others", tree)
            for key, tree in params.items()
        }

    return optax.multi_transform({"its": its, "others": others}, label)


def planned(
    step: Callable[..., Callable],
    ids: Callable[[jax.Array, PolicyData], jax.Array],
    data: PolicyData,
    train: PolicyTrainConfig,
    steps: int,
    mode: Literal["none", "pmap"],
) -> Callable[[TrainState, int, int], tuple[TrainState, Any]]:
    """`loop.Run.advance` in which texts of like length are padded together, by one of few plans.

    Args:
      step: makes the step of a plan.
      ids: (step, data) ↦ the texts of its batch, in the order in which devices and parts take them.
      steps: of the whole training, from which typical batches are taken.
    """
    width = data.tokens.shape[1]
    parts = train.accumulate * (jax.device_count() if mode == "pmap" else 1)

    @partial(jax.jit, static_argnames="number")
    def ranked(first: jax.Array, data: PolicyData, number: int) -> jax.Array:
        """(rows,) of the i-th longest texts of all parts of the coming batches the longest."""
        lengths = jax.vmap(lambda s: data.ends[ids(s, data)].reshape(parts, -1))(first + jnp.arange(number))
        return jnp.sort(lengths, axis=-1, descending=True).max((0, 1))

    host = dataclasses.replace(data, tokens=data.tokens[:, :1], base=None)

    def lengths(first: int, number: int) -> jax.Array:
        return ranked(jax.device_put(np.int32(first)), host, number)

    number = min(train.steps_per_call, steps)
    typical = np.unique(np.linspace(0, steps - number, _TYPICAL_CALLS).astype(int))
    batches = jax.device_get([lengths(int(first), number) for first in typical])
    plans = few_plans(np.stack(batches), train.length_groups, width)
    everywhere = parallel.replicate(data, mode)
    tables: dict[int, PolicyData] = {}
    calls: dict[tuple[Plan, int], Callable] = {}
    ahead: dict[tuple[int, int], jax.Array] = {}

    def advance(state: TrainState, first: int, number: int) -> tuple[TrainState, Any]:
        coming = ahead.pop((first, number), None)
        plan = cheapest(plans, jax.device_get(lengths(first, number) if coming is None else coming))
        # Asked for before the steps are under way: the next call then need not wait for them to end.
        ahead.clear()
        ahead[first + number, number] = lengths(first + number, number)
        size = plan[0][1]
        if size not in tables:
            with jax.transfer_guard("allow"):
                tables[size] = dataclasses.replace(everywhere, tokens=parallel.replicate(data.tokens[:, :size], mode))
        if (plan, number) not in calls:
            calls[plan, number] = parallel.compile_steps(many_steps(step(plan=plan), number), mode)
        return calls[plan, number](state, tables[size])

    return advance


class _Validation:
    """The scores of a policy on a fixed part of the validation users."""

    def __init__(self, work: PolicyWorkdir, conditioner: Conditioner):
        self.held_out = HeldOut.of(
            work.dataset.splits["val"],
            work.config.evaluate.k,
            conditional=conditioner.latent == "context",
            users=_VALIDATION_USERS,
            targets=_VALIDATION_TARGETS,
        )
        self.scorer = PolicyScorer(conditioner, work.base.decoder, work.data("val"), work.config.objective)

    def __call__(self, variables: PyTree) -> tuple[dict[str, float], list[str]]:
        """See `HeldOut.scores`; beside them rewards, log-probabilities and the KL divergence for every k."""
        out = self.scorer.score(jax.device_put(variables), self.held_out.episodes, self.held_out.ks)
        kl = out.kl if self.scorer.conditioner.sampled else None
        scores, warnings = self.held_out.scores(
            out.log_likelihood, out.latent[-1], None if kl is None else kl[-1], "rewards/accuracy"
        )
        named = {"rewards/margin": out.rewards[..., 0] - out.rewards[..., 1]}
        for side, name in enumerate(("chosen", "rejected")):
            named |= {f"rewards/{name}": out.rewards[..., side], f"logps/{name}": out.log_probs[..., side]}
        if kl is not None:
            named["kl"] = kl.sum(-1)
        return scores | self.held_out.by_context(named), warnings


def fit_base(work: PolicyWorkdir, stop: StopSignal) -> None:
    """Supervised fine-tuning of the whole language model; the best is written to WORKDIR/model as a checkpoint."""
    config, train, decoder = work.config, work.config.train, work.base.decoder
    mode = parallel.resolve(train.parallel, train.texts)
    optimizer = make_optimizer(config.optim, train.steps)
    data = work.data("train")
    step = partial(make_sft_step, decoder, optimizer, config, axis_name=parallel.AXIS if mode == "pmap" else None)
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), work.base.variables["params"])
    state = new_state(params, {}, optimizer, config.optim.average_decay > 0)

    ids = partial(draw_texts, config)
    held_out = work.tokens.rows(np.asarray(work.data("val").rows)[:_VALIDATION_TEXTS])
    number = int((held_out.ends - held_out.starts).sum())

    def validate(variables: PyTree) -> tuple[dict[str, float], list[str]]:
        return {
            "val/nll": -float(reference_log_probs(work.base, held_out, jax.device_put(variables)).sum()) / number
        }, []

    advance = planned(step, ids, data, train, train.steps, mode)
    run = Run("sft", train.steps, parallel.replicate(state, mode), advance, validate)
    best = run_to_end(run, train, work.path, stop)
    source = work.base.directory
    save_params(work.path / "model", {"params": best["params"]}, decoder.config, source)
    _log.info("sft: the model is in %s", work.path / "model")
