"""One pure training step, `(state, data) -> (state, metrics)`, for one device or many."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from fssa_jax.config.reward import ObjectiveConfig, OptimConfig
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.distributions import antithetic_noise, gaussian_sample
from fssa_jax.ops.losses import latent_roles, masked_mean, neural_process_loss
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.types import Comparisons, DiagGaussian, Episode, Leaf, PyTree

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in training. The step is all that a batch depends on besides the seed."""

    step: Leaf
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree  # exponential average of the parameters; {} if none is kept

    @property
    def variables(self) -> dict[str, PyTree]:
        """What to predict with: averaged parameters where they are kept, as `model.apply` takes them."""
        params = self.average or self.params
        return {"params": params, **({"batch_stats": self.batch_stats} if self.batch_stats else {})}

    def updated(
        self, params: PyTree, opt_state: PyTree, average_decay: float, batch_stats: PyTree | None = None
    ) -> "TrainState":
        """The state one step later; the average, where it is kept, moves towards the parameters."""
        average = self.average
        if average:
            # A short memory at first: the average must not hold the random start.
            t = self.step.astype(jnp.float32)
            decay = jnp.minimum(average_decay, (1 + t) / (10 + t))
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        stats = self.batch_stats if batch_stats is None else batch_stats
        return TrainState(self.step + 1, params, stats, opt_state, average)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    """What episodes are drawn from, on the device: choices by id, and the features of the texts.

    Both None for tasks that are drawn fresh.
    """

    choices: Leaf = None
    features: Leaf = None


DrawEpisode = Callable[[Key[Array, ""], Data], Episode]
TrainStep = Callable[[TrainState, Data], tuple[TrainState, Metrics]]


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up, cosine decay to `final_fraction`, and clipping by the global norm."""
    warmup = min(config.warmup_steps, steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=steps,
        end_value=config.learning_rate * config.final_fraction,
    )
    adamw = optax.adamw(schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def init_state(
    model: RewardModel,
    optimizer: optax.GradientTransformation,
    seed: int,
    data: Data,
    draw: DrawEpisode,
    average: bool = False,
) -> TrainState:
    """Random parameters, a function of the seed; `average` keeps an exponential average beside them."""
    key = jax.random.key(seed)
    episode = jax.vmap(draw, in_axes=(0, None))(jax.random.split(key, 2), data)

    def init(key: Key[Array, ""], data: Data) -> TrainState:
        variables = model.init(key, episode, data.features)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            average=jax.tree.map(jnp.copy, variables["params"]) if average else {},
        )

    return jax.jit(init)(key, data)


def forward(
    model: RewardModel,
    episode: Episode,
    features: Float[Array, "texts d"] | None,
    noise: Float[Array, "samples batch m"] | None,
    objective: str,
    train: bool,
) -> tuple[Float[Array, "samples batch t"], DiagGaussian | None, DiagGaussian | None]:
    """log p(targets | z) for the latents that the objective samples, and the two sides of its KL term.

    To be used as `model.apply(..., method=forward)`. `noise` None is a deterministic latent.
    """
    text_mask = model.text_mask() if train else None

    def log_likelihood(z: Array | None) -> Float[Array, "samples batch t"]:
        return model.log_likelihood(episode.targets, z, features, train, text_mask)

    def infer(context: Comparisons) -> DiagGaussian:
        return model.infer(context, features, train, text_mask)

    if model.latent == "none":
        return log_likelihood(None), None, None
    if model.latent == "group":
        return log_likelihood(model.group_z(episode.group)[None]), None, None
    q_context = infer(episode.context)
    if noise is None:
        return log_likelihood(q_context.mean[None]), None, None
    q_targets = infer(episode.targets) if objective == "published" else None
    q_union = infer(join(episode.context, episode.targets)) if objective == "elbo" else None
    sampled_from, reference = latent_roles(objective, q_context, q_targets, q_union)  # type: ignore[arg-type]
    return log_likelihood(gaussian_sample(sampled_from, noise)), sampled_from, reference


def join(a: Comparisons, b: Comparisons) -> Comparisons:
    """C ∪ T: the choices of both, as features (*batch, n, d) or as ids (*batch, n)."""
    axis = a.mask.ndim - 1
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=axis), a, b)


def make_train_step(
    model: RewardModel,
    optimizer: optax.GradientTransformation,
    draw: DrawEpisode,
    objective: ObjectiveConfig,
    *,
    users: int,
    seed: int,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> TrainStep:
    """The step: draw the batch of (seed, step), one gradient of the mean loss over users, one update.

    Every user's episode and noise come from a key of their own. With `axis_name` each device takes its
    share of those keys, so that n devices compute what one would; sums may differ in their last bits.
    Dropped texts are the same everywhere; dropout of attention weights repeats from device to device.

    Args:
      draw: an episode from a key and the data.
      users: of the whole batch, over all devices.
      average_decay: of the average of the parameters, where the state keeps one.
      axis_name: of the pmap that the step runs in, if any.
    """

    def loss_of(params: PyTree, state: TrainState, keys: Key[Array, " users"], key_dropout: Key[Array, ""], data: Data):
        key_draw, key_noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        episode = jax.vmap(draw, in_axes=(0, None))(key_draw, data)
        noise = None
        if model.sampled:
            noise = jax.vmap(lambda k: antithetic_noise(k, objective.samples, model.latent_dim), out_axes=1)(key_noise)
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, updated = model.apply(
            variables,
            episode,
            data.features,
            noise,
            objective.kind,
            True,
            method=forward,
            mutable=["batch_stats"],
            rngs={"dropout": key_dropout},
        )
        log_likelihood, sampled_from, reference = out
        marginal = objective.kind == "predictive"
        loss_fn = partial(neural_process_loss, kl_weight=objective.kl_weight, marginal=marginal)
        loss_of_users = jax.vmap(loss_fn, in_axes=(1, 0, 0, 0))
        terms = loss_of_users(log_likelihood, episode.targets.mask, sampled_from, reference)
        hits = preference_accuracy(log_likelihood).mean(0)
        metrics = {
            "loss": terms.loss.mean(),
            "nll": terms.nll.mean(),
            "kl": terms.kl.mean(),
            "accuracy": masked_mean(hits, episode.targets.mask).mean(),
        }
        # Per text, not per batch: a text that few people judged stays near what its features say.
        penalties = (("text_embedding", objective.text_penalty), ("text_bias", objective.text_bias_penalty))
        for name, weight in penalties:
            if name in params and weight:
                metrics["loss"] = metrics["loss"] + 0.5 * weight * jnp.sum(params[name]["embedding"] ** 2)
        return metrics["loss"], (metrics, updated.get("batch_stats", {}))

    def train_step(state: TrainState, data: Data) -> tuple[TrainState, Metrics]:
        key_users, key_dropout = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        keys = jax.random.split(key_users, users)
        if axis_name is not None:
            share = users // jax.lax.axis_size(axis_name)
            keys = jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(axis_name) * share, share)
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        (_, (metrics, batch_stats)), gradients = gradient_of(state.params, state, keys, key_dropout, data)
        if axis_name is not None:
            gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it; the tests are strict elsewhere
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.updated(params, opt_state, average_decay, batch_stats), metrics

    return train_step


def many_steps(step: TrainStep, number: int) -> TrainStep:
    """`number` steps in one call; the metrics are stacked, one row a step."""

    def run(state: TrainState, data: Data) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda carry, _: step(carry, data), state, None, length=number)

    return run
