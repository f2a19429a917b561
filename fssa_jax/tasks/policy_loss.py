"""The loss of policies: how people's choices become a gradient of the adapters."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from fssa_jax.config import (
    Dpo,
    FrozenEncoder,
    Hinge,
    Ipo,
    NewEncoder,
    NoEncoder,
    PreferenceLoss,
    RobustDpo,
    WarmEncoder,
)
from fssa_jax.lm.scoring import text_log_probs
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.choices import join_choices, offered, real_responses, responses_by_choice
from fssa_jax.ops.distributions import gaussian_kl, gaussian_sample
from fssa_jax.ops.likelihoods import choice_log_likelihood, lapse_log_likelihood
from fssa_jax.ops.losses import (
    dpo_loss,
    imitation_loss,
    implicit_rewards,
    latent_roles,
    list_dpo_loss,
    list_response_weights,
    masked_mean,
    response_weights,
    sft_loss,
    soft_label_loss,
)
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.reward import People
from fssa_jax.train.step import Batch, Loss, Metrics
from fssa_jax.types import Comparisons, DiagGaussian, PyTree

_KINDS = {Dpo: "sigmoid", RobustDpo: "robust", Ipo: "ipo", Hinge: "hinge"}


def reweighted(targets: Comparisons, *sides: Array) -> tuple[Array, ...]:
    """Imitation weights of responses, (users, targets) per side, times the weights of their choices; the same sum."""
    if targets.weight is None:
        return sides
    each = [side * targets.weight for side in sides]
    before, after = (sum(part.sum(-1, keepdims=True) for part in parts) for parts in (sides, each))
    return tuple(part * before / jnp.maximum(after, 1e-30) for part in each)


def policy_loss(
    conditioner: Conditioner,
    decoder: Decoder,
    objective: PreferenceLoss,
    encoder: FrozenEncoder | WarmEncoder | NewEncoder | NoEncoder,
    plan: Plan | None = None,
    share: bool = False,
) -> Loss:
    """The loss of DPO and NP-DPO, a mean over users, as a function of the conditioner's variables.

    With `share` the prompt of a choice is computed once for its responses.

    preference + sft_weight · SFT + kl_weight · KL + auxiliary_weight · NP-BTL; the terms are functions of ops/losses.
    """
    reads = conditioner.latent == "context"
    frozen = encoder if reads and isinstance(encoder, FrozenEncoder) else None
    free = encoder if reads and isinstance(encoder, WarmEncoder | NewEncoder) else None
    preference = partial(
        dpo_loss,
        beta=objective.beta,
        kind=_KINDS[type(objective)],  # type: ignore[arg-type]
        label_smoothing=getattr(objective, "label_smoothing", 0.0),
    )

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        del key
        people, tables = batch.rows, batch.tables
        targets = people.episode.targets
        z, kl = latent(variables, people, tables.features)
        adapters: Any = conditioner.apply(variables, z, method="adapt")
        by_choice = responses_by_choice(targets)
        ids = by_choice.reshape(-1)
        rows = by_choice.reshape(-1, by_choice.shape[-1] if share else 1)
        log_p = text_log_probs(decoder, tables.base, tables.texts, rows, adapters, plan).reshape(-1)
        tokens = jnp.maximum(tables.texts.ends[ids] - tables.texts.starts[ids], 1).astype(jnp.float32)

        def sides(x: Array) -> tuple[Array, ...]:
            """By response of a choice, the chosen one first, (users, targets) each."""
            return tuple(jnp.moveaxis(x.reshape(by_choice.shape), -1, 0))

        def mean(x: Array) -> Array:
            return masked_mean(x, targets.mask, targets.weight).mean()

        scale = tokens if objective.length_normalised else jnp.ones_like(tokens)
        own, reference = sides(log_p / scale), sides(tables.reference[ids] / scale)
        liked: Any = None
        if reads:
            liked = conditioner.apply(variables, targets, z, tables.features, method="target_rewards")
        judged = jax.lax.stop_gradient(liked) if frozen else None
        # Divided by the mean number of tokens of all texts: a text's own length would down-weight long texts.
        starts, ends = tables.texts.starts, tables.texts.ends
        typical = (ends - starts).sum() / jnp.maximum((ends > 0).sum(), 1)
        implicit = [implicit_rewards(o, r, objective.beta) for o, r in zip(own, reference, strict=True)]
        if targets.others is None:
            losses, sft = pair_terms(targets, own, reference, judged, sides(log_p), sides(tokens), typical)
            rejected = best = implicit[1]
            of_rejected = sides(log_p)[1]
        else:
            losses, sft = list_terms(targets, implicit, judged, sides(log_p), sides(tokens), typical)
            listed = jnp.moveaxis(real_responses(targets), -1, 0)[1:]
            best = jnp.where(listed, jnp.stack(implicit[1:]), -jnp.inf).max(0)
            rejected, of_rejected = (
                jnp.where(listed, jnp.stack(side[1:]), 0).sum(0) / listed.sum(0).astype(jnp.float32)
                for side in (implicit, sides(log_p))
            )
        chosen = implicit[0]
        metrics: Metrics = {
            "loss/preference": mean(losses),
            "loss/sft": sft,
            "rewards/chosen": mean(chosen),
            "rewards/rejected": mean(rejected),
            "rewards/margins": mean(chosen - rejected),
            "rewards/accuracies": mean(0.5 * (1 + jnp.sign(chosen - best))),
            "logps/chosen": mean(sides(log_p)[0]),
            "logps/rejected": mean(of_rejected),
        }
        total = metrics["loss/preference"] + objective.sft_weight * sft
        if kl is not None:
            metrics["kl"] = kl.mean()
            total = total + (free.kl_weight if free else 0.0) * metrics["kl"]
        if free and free.auxiliary_weight and liked is not None:
            likelihood = choice_log_likelihood(liked[..., :1] - liked[..., 1:], offered(targets))
            lapse: Any = conditioner.apply(variables, method="lapse")
            if lapse is not None:
                number = real_responses(targets).sum(-1)
                likelihood = lapse_log_likelihood(likelihood, lapse, jnp.broadcast_to(number, likelihood.shape))
            metrics["loss/reward"] = -mean(likelihood)
            total = total + free.auxiliary_weight * metrics["loss/reward"]
        return total, metrics | {"loss": total}

    def latent(variables: PyTree, people: People, features: Array) -> tuple[Array, Array | None]:
        """z of each person, and the KL divergence of its distribution; None for a deterministic z."""
        q: Any = conditioner.apply(variables, people.episode, features, method="latent_of")
        if not conditioner.sampled:
            return q.mean, None

        def infer(context: Comparisons) -> DiagGaussian:
            out: Any = conditioner.apply(variables, context, features, method="infer")
            return out

        context, targets = people.episode.context, people.episode.targets
        kind = free.divergence if free else "vpl"
        q_targets = infer(targets) if kind == "published" else None
        q_union = infer(join_choices(context, targets)) if kind == "elbo" else None
        sampled_from, other = latent_roles(kind, q, q_targets, q_union)
        noise = jax.vmap(lambda k: jax.random.normal(k, q.mean.shape[1:]))(people.noise)
        return gaussian_sample(sampled_from, noise), gaussian_kl(sampled_from, other)

    def pair_terms(
        targets: Comparisons, own: Any, reference: Any, judged: Array | None, log_p: Any, tokens: Any, typical: Array
    ) -> tuple[Array, Array]:
        """The preference loss of every target, and the SFT term, of choices between two."""
        losses = preference(*own, *reference)
        if frozen and frozen.distil and judged is not None:
            p = jax.nn.sigmoid(judged[..., 0] - judged[..., 1])
            losses = soft_label_loss(losses, preference(own[1], own[0], *reference[::-1]), p, frozen.distil)
        if frozen and frozen.imitate != "chosen" and judged is not None:
            weights = response_weights(judged[..., 0], judged[..., 1], targets.mask, objective.beta, frozen.imitate)
            weights = reweighted(targets, *weights)
            return losses, imitation_loss(log_p[0], log_p[1], (weights[0], weights[1]), typical).mean()
        return losses, sft_loss(log_p[0], tokens[0], targets.mask, targets.weight).mean()

    def list_terms(
        targets: Comparisons, implicit: Any, judged: Array | None, log_p: Any, tokens: Any, typical: Array
    ) -> tuple[Array, Array]:
        """`pair_terms` of choices of one among more than two."""
        listed = real_responses(targets)
        p = None
        if frozen and frozen.distil and judged is not None:
            p = jax.nn.softmax(jnp.where(listed, judged, -jnp.inf), axis=-1)
        losses = list_dpo_loss(jnp.stack(implicit, axis=-1), listed, p, frozen.distil if frozen else 0.0)
        if frozen and frozen.imitate != "chosen" and judged is not None:
            real = listed & targets.mask[..., None]
            weights = list_response_weights(judged, real, objective.beta, frozen.imitate)
            weights = jnp.stack(reweighted(targets, *jnp.moveaxis(weights, -1, 0)), axis=-1)
            return losses, -(weights * (jnp.stack(log_p, axis=-1) / typical)).sum((-1, -2)).mean()
        return losses, sft_loss(log_p[0], tokens[0], targets.mask, targets.weight).mean()

    return loss
