"""Policies: NP-DPO, steered by a person's choices; DPO for everybody; and specialists, which are given the group."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from fssa_jax.config import (
    AdamW,
    Dpo,
    Film,
    FrozenEncoder,
    Hinge,
    Ipo,
    LoraCore,
    NewEncoder,
    NoEncoder,
    PolicyConfig,
    PreferenceLoss,
    RobustDpo,
    WarmEncoder,
)
from fssa_jax.data.dataset import Dataset, Split, featuriser_of_texts
from fssa_jax.data.features import GivenFeaturiser
from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base
from fssa_jax.lm.scoring import Texts, text_log_probs
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import Decoder, DecoderConfig, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.choices import join_choices, offered, per_choice, real_responses, responses_of
from fssa_jax.ops.distributions import gaussian_kl, gaussian_sample
from fssa_jax.ops.episodes import draw_episode
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
from fssa_jax.tasks.policy_scorer import PolicyScorer
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import People, draw_people
from fssa_jax.tasks.reward_models import make_model
from fssa_jax.tasks.states import adapted_layers, spared_layers, texts_with_states
from fssa_jax.tasks.task import MAIN, POPULATION, SPECIALIST
from fssa_jax.train.state import make_optimizer
from fssa_jax.train.step import Batch, Draw, Loss, Metrics
from fssa_jax.types import ChoiceTable, Comparisons, DiagGaussian, Episode, Leaf, PyTree

TEACHER = "encoder"
"""Key in the `trained` argument of `PolicyTask.start`: the variables of the reward model for the warm start."""

_log = logging.getLogger(__name__)

_KINDS = {Dpo: "sigmoid", RobustDpo: "robust", Ipo: "ipo", Hinge: "hinge"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyTables:
    """Inputs of a step on the device. Texts are rows of the token table, of `reference` and of `features`.

    Attributes:
      texts: the token table.
      reference: (texts,) log π_ref(response | prompt) in nats.
      choices: a ChoiceTable.
      features: (texts, d).
      base: variables of the language model.
      ranked: a ChoiceTable of the same users with ranked pairs as targets; None for none.
    """

    texts: Texts
    reference: Leaf = None
    choices: Leaf = None
    features: Leaf = None
    base: PyTree = None
    ranked: Leaf = None


@dataclasses.dataclass(frozen=True)
class PolicyTask:
    """Training of a policy and its baselines; the language model is frozen."""

    config: PolicyConfig
    dataset: Dataset
    base: Base
    tokens: TokenTable
    reference: np.ndarray  # (texts,) log-probabilities of the base, in nats
    ranked: ChoiceTable | None = None  # the training choices with ranked pairs as targets

    @property
    def names(self) -> tuple[str, ...]:
        """See `Task`; specialists need several groups."""
        train = self.config.train
        if isinstance(self.config.encoder, NoEncoder):
            return (MAIN,)
        population = (POPULATION,) if train.population_steps > 0 else ()
        special = train.specialist_steps > 0 and len(self.dataset.groups) > 1
        return (*population, MAIN, *((SPECIALIST,) if special else ()))

    @property
    def rows(self) -> int:
        """Users per batch."""
        return self.config.train.users

    @property
    def reward(self) -> RewardModel | None:
        """The reward model whose encoder reads the choices; None if none are read."""
        encoder = self.config.encoder
        return None if isinstance(encoder, NoEncoder) else make_model(encoder.model, self.dataset)

    def steps(self, name: str) -> int:
        """See `Task`."""
        train = self.config.train
        return {MAIN: train.steps, POPULATION: train.population_steps, SPECIALIST: train.specialist_steps}[name]

    def conditioner(self, name: str = MAIN) -> Conditioner:
        """The module that emits the adapters: "population" is DPO on everybody, "specialist" has a latent per group."""
        hyper = make_hypernetwork(self.config.policy.adapter, self.base.decoder.config)
        if name == SPECIALIST:
            return Conditioner(hyper, "group", groups=len(self.dataset.groups))
        if name == POPULATION or self.reward is None:
            return Conditioner(hyper, "none")
        return Conditioner(hyper, "context", self.reward, frozen=isinstance(self.config.encoder, FrozenEncoder))

    def reads(self, name: str) -> bool:
        """See `Task`."""
        return name == MAIN and not isinstance(self.config.encoder, NoEncoder)

    def optim(self, name: str) -> AdamW:
        """See `Task`."""
        return self.config.optim

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """See `Task`; a frozen encoder is not updated."""
        optimizer = make_optimizer(self.optim(name), self.steps(name))
        if not self.conditioner(name).frozen:
            return optimizer

        def label(params: PyTree) -> PyTree:
            return {
                key: jax.tree.map(lambda _, key=key: "frozen" if key == "reward" else "trained", tree)
                for key, tree in params.items()
            }

        return optax.multi_transform({"frozen": optax.set_to_zero(), "trained": optimizer}, label)

    def start(self, name: str, trained: Mapping[str, PyTree]) -> PyTree:
        """Random init from the seed, at which the policy equals the base; a warm start uses the teacher's encoder."""
        conditioner, tables, draw = self.conditioner(name), self.tables("train"), self.draw(name)

        def init(key: Key[Array, ""], tables: PolicyTables) -> PyTree:
            rows = draw(jax.random.split(key, 2), tables)
            return conditioner.init(key, rows.episode, tables.features)

        variables = dict(jax.jit(init)(jax.random.key(self.config.seed), dataclasses.replace(tables, base=None)))
        teacher = trained.get(TEACHER)
        if conditioner.latent == "context" and teacher is not None:
            variables["params"] = {**variables["params"], "reward": _fitting(teacher["params"], variables["params"])}
        return variables

    def draw(self, name: str) -> Draw:
        """See `Task`; models that read no context draw none."""
        train = self.config.train
        most, least = (train.max_context, train.min_context) if self.reads(name) else (0, 0)
        # Choices of the baselines are people's own. Ranked pairs were not chosen, so they are never a context.
        ranked = self.reads(name) and self.ranked is not None
        sizes = {"max_context": most, "min_context": least, "max_targets": train.targets}
        kind = partial(draw_episode, **sizes, swap_pools=not ranked)

        def episode_of(key: Key[Array, ""], tables: PolicyTables) -> Episode:
            episode = kind(key, tables.choices)
            return dataclasses.replace(episode, targets=kind(key, tables.ranked).targets) if ranked else episode

        if not self.dataset.thresholds.any():
            return draw_people(episode_of)

        def draw(key: Key[Array, ""], tables: PolicyTables) -> Episode:
            episode = episode_of(key, tables)
            # Thumbs and ratings are read, not trained on: a threshold has no tokens.
            targets, written = episode.targets, tables.texts.ends > 0
            mask = targets.mask & written[targets.chosen] & written[targets.rejected]
            return dataclasses.replace(episode, targets=dataclasses.replace(targets, mask=mask))

        return draw_people(draw)

    def tables(self, split: str) -> PolicyTables:
        """See `Task`."""
        tables = self.tables_of(self.dataset.splits[split])
        if split != "train" or self.ranked is None:
            return tables
        return dataclasses.replace(tables, ranked=jax.tree.map(jnp.asarray, self.ranked))

    def tables_of(self, split: Split) -> PolicyTables:
        """`tables` of a split that is not part of the data set."""
        return dataclasses.replace(self._on_device, choices=jax.tree.map(jnp.asarray, split.table))

    @cached_property
    def _on_device(self) -> PolicyTables:
        """The tables that all splits and models share: one copy on the device."""
        return PolicyTables(
            texts_with_states(self.base, self.tokens, self.cached_layers),
            jnp.asarray(self.reference),
            features=jnp.asarray(self.dataset.features),
            base=self.base.variables,
        )

    @cached_property
    def cached_layers(self) -> int:
        """See `spared_layers`."""
        return cached_layers(self.config, self.base, self.tokens)

    def loss(self, name: str, plan: Plan | None = None) -> Loss:
        """See `Task`."""
        return policy_loss(self.conditioner(name), self.base.decoder, self.config.objective, self.config.encoder, plan)

    def texts(self, rows: People) -> Int[Array, "users targets responses"]:
        """See `Task`: all responses of every target."""
        return per_choice(responses_of(rows.episode.targets), rows.episode.targets)

    def whose(self, rows: People) -> str:
        """Names of the users."""
        users = self.dataset.splits["train"].users
        return f" (people {', '.join(sorted({users[int(u)] for u in np.asarray(rows.episode.user)}))})"

    def scorer(self, name: str, split: Split) -> PolicyScorer:
        """The scorer of a model on the texts of a split."""
        return PolicyScorer(self.conditioner(name), self.base.decoder, self.tables_of(split), self.config.objective)

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """See `Task`."""
        return self.scorer(name, split).predictor

    def finish(self, directory: Path, variables: PyTree) -> None:
        """See `Task`; nothing is written."""


def reweighted(targets: Comparisons, *sides: Array) -> tuple[Array, ...]:
    """Imitation weights of responses, (users, targets) per side, times the weights of their choices; the same sum."""
    if targets.weight is None:
        return sides
    each = [side * targets.weight for side in sides]
    before, after = (sum(part.sum(-1, keepdims=True) for part in parts) for parts in (sides, each))
    return tuple(part * before / jnp.maximum(after, 1e-30) for part in each)


def _fitting(teacher: PyTree, params: PyTree) -> PyTree:
    """The teacher's parameters, after checking that their structure and shapes fit the policy's reward model."""
    theirs = jax.tree.map(jnp.asarray, teacher)
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(params["reward"], theirs)
    except AssertionError as error:
        raise UserError(
            "config.encoder.init_from: its model has other sizes than these data require; give the same data"
        ) from error
    return theirs


def cached_layers(config: PolicyConfig, base: Base, tokens: TokenTable) -> int:
    """`spared_layers` of a policy's configuration."""
    settings = config.policy
    adapted = adapted_layers(settings.adapter, base.decoder.config)
    return spared_layers(base, tokens, adapted, settings.cache_states)


def make_hypernetwork(adapter: Any, decoder: DecoderConfig) -> Hypernetwork:
    """The hypernetwork for the adapter settings and a decoder."""
    shared = adapter.shared
    common = {
        "places": place_sizes(decoder, adapter.places),
        "layers": adapted_layers(adapter, decoder),
        "shared_places": place_sizes(decoder, shared.places) if shared.rank else (),
        "shared_rank": shared.rank,
        "shared_scale": (shared.alpha / shared.rank if shared.alpha else 2.0) if shared.rank else 0.0,
    }
    if isinstance(adapter, Film):
        return Hypernetwork("film", hidden=adapter.hidden, **common)
    if isinstance(adapter, LoraCore):
        return Hypernetwork("lora_core", rank=adapter.rank, core=adapter.core, **common)
    return Hypernetwork("lora", rank=adapter.rank, width=adapter.width, **common)


def policy_loss(
    conditioner: Conditioner,
    decoder: Decoder,
    objective: PreferenceLoss,
    encoder: FrozenEncoder | WarmEncoder | NewEncoder | NoEncoder,
    plan: Plan | None = None,
) -> Loss:
    """The loss of DPO and NP-DPO, a mean over users, as a function of the conditioner's variables.

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
        by_choice = per_choice(responses_of(targets), targets)
        ids = by_choice.reshape(-1)
        log_p = text_log_probs(decoder, tables.base, tables.texts, ids, adapters, plan)
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


def reads_new_texts(task: PolicyTask) -> bool:
    """Whether the policy has a reward model that was trained, and that reads what is written.

    One from `init_from` was trained. One that is new is trained only by its auxiliary loss.
    """
    encoder: Any = task.config.encoder
    trained = bool(getattr(encoder, "init_from", "")) or getattr(encoder, "auxiliary_weight", 0) > 0
    given = isinstance(featuriser_of_texts(task.dataset.featuriser), GivenFeaturiser)
    return trained and task.reward is not None and task.reward.target != "none" and not given
