"""The pure training steps of policies: preferences of people, and supervised fine-tuning of a base."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from fssa_jax.config.policy import PolicyConfig
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.adapters import AdapterTree, adapter_rows, take_adapter_rows
from fssa_jax.ops.distributions import gaussian_kl, gaussian_sample
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.ops.logprobs import response_log_probs
from fssa_jax.ops.losses import dpo_loss, latent_roles, masked_mean, response_weights
from fssa_jax.ops.padding import Plan
from fssa_jax.train.step import Metrics, TrainState, join
from fssa_jax.types import Comparisons, Episode, Leaf, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyData:
    """What a step reads on the device. Texts are rows of the token table, of the references and of the features.

    `tokens` (texts, length), `starts`, `ends` (texts,) as in `TokenTable`; `reference` (texts,) log π_ref(response |
    prompt) in nats; `choices` a ChoiceTable; `features` (texts, d); `base` the parameters of the language model;
    `rows` ids of the texts that supervised fine-tuning draws from.
    """

    tokens: Leaf
    starts: Leaf
    ends: Leaf
    base: PyTree = None
    reference: Leaf = None
    choices: Leaf = None
    features: Leaf = None
    rows: Leaf = None


def text_log_probs(
    decoder: Decoder,
    base: PyTree,
    data: PolicyData,
    ids: Int[Array, " n"],
    adapters: AdapterTree | None = None,
    plan: Plan | None = None,
) -> Float[Array, " n"]:
    """log π(response | prompt) of texts; adapters have a row for each, or one for n that follow each other.

    With a `plan` the texts are sorted by length and taken group by group, each padded to its own length; they must
    fit (`buckets.fits`). Without one all are padded to the width of the token table.
    """
    if plan is not None and len(plan) > 1:
        return _by_length(decoder, base, data, ids, adapters, plan)
    tokens = data.tokens[ids]
    if plan is not None:
        tokens = tokens[:, : max(length for _, length in plan)]
    hidden: Any = decoder.apply(base, tokens, adapters, method="hidden")
    kernel: Any = decoder.apply(base, method="output_kernel")
    # With a small vocabulary many tokens at a time fit into the same memory.
    chunk = min(max(2**22 // decoder.config.vocabulary, 256), 8192)
    return response_log_probs(
        hidden[0], kernel, tokens, data.starts[ids], data.ends[ids], chunk=chunk, softcap=decoder.config.logit_softcap
    )


def _by_length(
    decoder: Decoder, base: PyTree, data: PolicyData, ids: Array, adapters: AdapterTree | None, plan: Plan
) -> Float[Array, " n"]:
    order = jnp.argsort(-data.ends[ids])
    rows = None if adapters is None else adapter_rows(adapters)
    values, start = [], 0
    for number, width in plan:
        place = order[start : start + number]
        mine = adapters
        if adapters is not None and rows not in (None, 1):
            mine = take_adapter_rows(adapters, place // (len(ids) // rows))
        values.append(text_log_probs(decoder, base, data, ids[place], mine, ((number, width),)))
        start += number
    return jnp.zeros(len(ids)).at[order].set(jnp.concatenate(values), unique_indices=True)


def draw_batch(
    key: Key[Array, ""], data: PolicyData, users: int, max_context: int, max_targets: int
) -> tuple[Episode, Key[Array, " users"]]:
    """The episodes of a batch, each drawn by a key of its own, and keys for the noise of their latents."""
    keys = jax.random.split(key, users)
    key_draw, key_noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    draw = partial(draw_episode, table=data.choices, max_context=max_context, max_targets=max_targets)
    return jax.vmap(draw)(key_draw), key_noise


def batch_key(seed: int, step: Int[Array, ""]) -> Key[Array, ""]:
    """All that the batch of a step depends on."""
    return jax.random.fold_in(jax.random.key(seed), step)


def draw_texts(config: PolicyConfig, step: Int[Array, ""], data: PolicyData) -> Int[Array, " texts"]:
    """The texts of a batch of supervised fine-tuning."""
    place = jax.random.randint(batch_key(config.seed, step), (config.train.texts,), 0, data.rows.shape[0])
    return data.rows[place]


def make_policy_step(
    conditioner: Conditioner,
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    config: PolicyConfig,
    *,
    axis_name: str | None = None,
    plan: Plan | None = None,
) -> Callable[[TrainState, PolicyData], tuple[TrainState, Metrics]]:
    """The step of DPO and NP-DPO: one gradient of the mean loss over users with respect to what steers.

    A batch is a function of (seed, step). With `axis_name` each device takes its share of the users; a share is cut
    into `config.train.accumulate` parts that are taken one after the other. The texts of a part are padded by `plan`;
    see `text_log_probs`.
    """
    train, objective = config.train, config.objective
    conditional = conditioner.latent == "context"
    sizes = (train.max_context if conditional else 0, train.targets)

    def latent(
        variables: PyTree, episode: Episode, keys: Key[Array, " users"], data: PolicyData
    ) -> tuple[Array, Array | None]:
        """z of each person, and the KL divergence of what it is drawn from; a point has none."""
        q: Any = conditioner.apply(variables, episode, data.features, method="latent_of")
        if not conditioner.sampled:
            return q.mean, None
        roles: Any = objective.latent  # checked with the configuration

        def infer(context: Comparisons) -> Any:
            return conditioner.apply(variables, context, data.features, method="infer")

        sampled_from, other = latent_roles(
            roles,
            q,
            infer(episode.targets) if roles == "published" else None,
            infer(join(episode.context, episode.targets)) if roles == "elbo" else None,
        )
        noise = jax.vmap(lambda k: jax.random.normal(k, q.mean.shape[1:]))(keys)
        return gaussian_sample(sampled_from, noise), gaussian_kl(sampled_from, other)

    def loss_of(params: PyTree, stats: PyTree, episode: Episode, keys: Key[Array, " users"], data: PolicyData):
        users, targets = episode.targets.mask.shape
        mask = episode.targets.mask
        variables = {"params": params, **stats}
        z, kl = latent(variables, episode, keys, data)
        adapters: Any = conditioner.apply(variables, z, method="adapt")
        ids = jnp.stack([episode.targets.chosen, episode.targets.rejected], axis=-1).reshape(-1)
        log_p = text_log_probs(decoder, data.base, data, ids, adapters, plan)
        tokens = jnp.maximum(data.ends[ids] - data.starts[ids], 1).astype(jnp.float32)

        def sides(x: Array) -> tuple[Array, Array]:
            pair = x.reshape(users, targets, 2)
            return pair[..., 0], pair[..., 1]

        scale = tokens if objective.length_normalised else jnp.ones_like(tokens)
        own, reference = sides(log_p / scale), sides(data.reference[ids] / scale)
        kind: Any = objective.kind  # checked with the configuration
        loss_fn = partial(dpo_loss, beta=objective.beta, kind=kind, label_smoothing=objective.label_smoothing)
        losses = loss_fn(*own, *reference)

        def mean(x: Array) -> Array:
            return masked_mean(x, mask).mean()

        sft = -mean(sides(log_p / tokens)[0])
        # Only who reads choices has a reward model; what is not used of it is not compiled.
        liked: Any = None
        margin = jnp.zeros_like(losses)
        if conditional:
            liked = conditioner.apply(variables, episode.targets, z, data.features, method="target_rewards")
            margin = liked[0] - liked[1]
        if conditional and objective.distil:
            p = jax.nn.sigmoid(jax.lax.stop_gradient(margin))
            soft = p * losses + (1 - p) * loss_fn(*own[::-1], *reference[::-1])
            losses = (1 - objective.distil) * losses + objective.distil * soft
        if conditional and objective.sft != "chosen":
            worth: Any = objective.sft  # checked with the configuration
            judged: Any = jax.lax.stop_gradient(liked)
            weights = response_weights(judged[0], judged[1], mask, objective.beta, worth)
            # By the mean number of tokens of all texts: by those of each, long ones would weigh less.
            typical = (data.ends - data.starts).sum() / jnp.maximum((data.ends > 0).sum(), 1)
            sft = -sum((w * side).sum(-1).mean() for w, side in zip(weights, sides(log_p / typical), strict=True))
        rewards = tuple(objective.beta * (o - r) for o, r in zip(own, reference, strict=True))
        metrics = {
            "loss": mean(losses),
            "sft": sft,
            "rewards/chosen": mean(rewards[0]),
            "rewards/rejected": mean(rewards[1]),
            "rewards/margin": mean(rewards[0] - rewards[1]),
            "rewards/accuracy": mean(0.5 * (1 + jnp.sign(rewards[0] - rewards[1]))),
            "logps/chosen": mean(sides(log_p)[0]),
            "logps/rejected": mean(sides(log_p)[1]),
        }
        loss = metrics["loss"] + objective.sft_weight * metrics["sft"]
        if kl is not None:
            metrics["kl"] = kl.mean()
            loss = loss + objective.kl_weight * metrics["kl"]
        if conditional and config.encoder.auxiliary_weight:
            metrics["reward_nll"] = -mean(jax.nn.log_sigmoid(margin))
            loss = loss + config.encoder.auxiliary_weight * metrics["reward_nll"]
        return loss, metrics | {"loss": loss}

    def step(state: TrainState, data: PolicyData) -> tuple[TrainState, Metrics]:
        episode, keys = draw_batch(batch_key(config.seed, state.step), data, train.users, *sizes)
        stats = {"batch_stats": state.batch_stats} if state.batch_stats else {}
        return _accumulated_update(
            state,
            optimizer,
            lambda params, part: loss_of(params, stats, part[0], part[1], data),
            (episode, keys),
            train.users,
            train.accumulate,
            config.optim.average_decay,
            axis_name,
        )

    return step


def make_sft_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    config: PolicyConfig,
    *,
    axis_name: str | None = None,
    plan: Plan | None = None,
) -> Callable[[TrainState, PolicyData], tuple[TrainState, Metrics]]:
    """The step of supervised fine-tuning: −log π(response | prompt) a token, of texts drawn by (seed, step)."""
    train = config.train

    def loss_of(params: PyTree, ids: Array, data: PolicyData, tokens: Array):
        # By the mean number of tokens in the whole batch: parts and devices then add up to one batch.
        loss = -text_log_probs(decoder, {"params": params}, data, ids, plan=plan).mean() / tokens
        return loss, {"loss": loss}

    def step(state: TrainState, data: PolicyData) -> tuple[TrainState, Metrics]:
        ids = draw_texts(config, state.step, data)
        tokens = (data.ends[ids] - data.starts[ids]).astype(jnp.float32).mean()
        return _accumulated_update(
            state,
            optimizer,
            lambda params, part: loss_of(params, part, data, tokens),
            ids,
            train.texts,
            train.accumulate,
            config.optim.average_decay,
            axis_name,
        )

    return step


def _accumulated_update(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    loss_of: Callable[[PyTree, Any], tuple[Array, Metrics]],
    batch: PyTree,
    size: int,
    parts: int,
    average_decay: float,
    axis_name: str | None,
) -> tuple[TrainState, Metrics]:
    """One update by the mean gradient over a batch: this device's share of it, in parts."""
    share = size
    if axis_name is not None:
        share = size // jax.lax.axis_size(axis_name)
        start = jax.lax.axis_index(axis_name) * share
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, share), batch)
    gradient_of = jax.grad(loss_of, has_aux=True)
    if parts == 1:
        gradients, metrics = gradient_of(state.params, batch)
    else:
        cut = jax.tree.map(lambda x: x.reshape(parts, share // parts, *x.shape[1:]), batch)
        shapes = jax.eval_shape(gradient_of, state.params, jax.tree.map(lambda x: x[0], cut))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(
            lambda sums, part: (jax.tree.map(jnp.add, sums, gradient_of(state.params, part)), None), zero, cut
        )
        gradients, metrics = jax.tree.map(lambda x: x / parts, total)
    if axis_name is not None:
        gradients, metrics = jax.lax.pmean((gradients, metrics), axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it; the tests are strict elsewhere
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.updated(params, opt_state, average_decay), metrics
