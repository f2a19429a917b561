"""Reward models: BTL, DPL and NP-BTL, with their baselines, the population model and the specialists."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from fssa_jax.config import AdamW, Btl, Dpl, NeuralProcess, NpBtl, RewardConfig, Synthetic
from fssa_jax.data.benchmarks import synthetic
from fssa_jax.data.dataset import Dataset, Split, seen_in_training
from fssa_jax.models import rewards
from fssa_jax.models.ensemble import label, separate, stacked
from fssa_jax.ops.choices import join_choices
from fssa_jax.ops.distributions import antithetic_noise
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.ops.factorise import factorise, observed_responses
from fssa_jax.ops.losses import latent_roles, masked_mean, neural_process_loss
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward_models import make_model, members_of
from fssa_jax.tasks.reward_predictor import reward_predictor
from fssa_jax.tasks.task import MAIN, POPULATION, SPECIALIST
from fssa_jax.train.state import make_optimizer
from fssa_jax.train.step import Batch, Draw, Loss, Metrics
from fssa_jax.types import Comparisons, DiagGaussian, Episode, Leaf, Posterior, PyTree

_log = logging.getLogger(__name__)

_APART = 1_000_003  # the seeds of an ensemble's models, so that those of neighbouring seeds differ


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """The source of episodes, on the device: choices by id, and features of texts (texts, d).

    Both are None for a task with fresh draws. `penalties`, if given, replaces `penalties_of` the objective.
    """

    choices: Leaf = None
    features: Leaf = None
    penalties: Leaf = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class People:
    """The rows of a batch: an episode per user, and a key per user for the noise of the latent."""

    episode: Episode
    noise: Leaf


@dataclasses.dataclass(frozen=True)
class RewardTask:
    """Training of a reward model and its baselines."""

    config: RewardConfig
    dataset: Dataset

    @property
    def names(self) -> tuple[str, ...]:
        """See `Task`; the others may start from the population model. Specialists need several groups."""
        population = () if type(self.config.model) is Btl else (POPULATION,)
        special = self.config.train.specialist_steps > 0 and len(self.dataset.groups) > 1
        return (*population, MAIN, *((SPECIALIST,) if special else ()))

    @property
    def rows(self) -> int:
        """Users per batch."""
        return self.config.train.users

    def steps(self, name: str) -> int:
        """See `Task`."""
        train = self.config.train
        return {MAIN: train.steps, POPULATION: train.population_steps, SPECIALIST: train.specialist_steps}[name]

    def reads(self, name: str) -> bool:
        """See `Task`."""
        return name == MAIN and isinstance(self.config.model, NpBtl)

    def optim(self, name: str) -> AdamW:
        """See `Task`."""
        rate = self.config.train.population_learning_rate
        if name == POPULATION and rate:
            return dataclasses.replace(self.config.optim, learning_rate=rate)
        return self.config.optim

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """See `Task`; each model of an ensemble has its own."""
        members = self.members(name)
        if len(members) == 1:
            return make_optimizer(self.optim(name), self.steps(name))
        each: dict[Any, optax.GradientTransformation] = {
            label(i): member.optimizer(name) for i, member in enumerate(members)
        }
        return optax.partition(each, {part: part for part in each})

    def model(self, name: str = MAIN) -> rewards.RewardModel:
        """The module of a model."""
        return make_model(self.config.model, self.dataset, name)

    def members(self, name: str) -> list["RewardTask"]:
        """The tasks of the models of an ensemble; of a single model, the task itself."""
        model = self.config.model
        if name != MAIN or not isinstance(model, NpBtl) or len(members_of(model)) == 1:
            return [self]
        return [dataclasses.replace(self, config=config) for config in _configs_of_members(self.config, model)]

    def draw(self, name: str) -> Draw:
        """See `Task`; models that read no context draw none."""
        train = self.config.train
        kind = synthetic.draw_episode if isinstance(self.config.data, Synthetic) else draw_episode
        context = train.max_context if self.reads(name) else 0
        draw = partial(kind, max_context=context, max_targets=train.targets)
        return draw_people(lambda key, tables: draw(key, tables.choices))

    def tables(self, split: str) -> Tables:
        """See `Task`."""
        if isinstance(self.config.data, Synthetic) and split == "train":
            pairs = synthetic.published_pairs("train") if self.config.data.published else None
            return Tables(None if pairs is None else jnp.asarray(pairs, jnp.float32))
        table = jax.tree.map(jnp.asarray, self.dataset.splits[split].table)
        return Tables(table, jnp.asarray(self.dataset.features))

    def loss(self, name: str, plan: Plan | None = None) -> Loss:
        """See `Task`."""
        del plan  # features need no padding
        members = self.members(name)
        losses = [reward_loss(member.model(name), member.config.objective) for member in members]
        return losses[0] if len(losses) == 1 else ensemble_loss(losses)

    def start(self, name: str, trained: Mapping[str, PyTree]) -> PyTree:
        """Random init from the seed; then, if configured, the population reward and a matrix factorisation."""
        return self.warm(name, self.init(name), trained)

    def init(self, name: str) -> PyTree:
        """Random init from the seed, which does not depend on the training people."""
        members = self.members(name)
        if len(members) > 1:
            return stacked([member.init(name) for member in members])
        model, tables, draw = self.model(name), self.tables("train"), self.draw(name)

        def init(key: Key[Array, ""], tables: Tables) -> PyTree:
            rows = draw(jax.random.split(key, 2), tables)
            return model.init(key, rows.episode, tables.features)

        return jax.jit(init)(jax.random.key(self.config.seed), tables)

    def warm(self, name: str, variables: PyTree, trained: Mapping[str, PyTree]) -> PyTree:
        """A random init with the parts that trained models and the data give."""
        members = self.members(name)
        if len(members) > 1:
            each = zip(members, separate(variables), strict=True)
            return stacked([member.warm(name, one, trained) for member, one in each])
        # A DPL reward has two outputs, so it cannot start from the population model.
        population = None if isinstance(self.config.model, Dpl) and name == MAIN else trained.get(POPULATION)
        return {**variables, "params": self._warm(name, self.model(name), variables, population)}

    def _warm(self, name: str, model: rewards.RewardModel, variables: PyTree, population: PyTree) -> PyTree:
        params = dict(variables["params"])
        thresholds = self.dataset.thresholds
        seen = jnp.asarray(seen_in_training(self.dataset) | thresholds)[:, None]
        if "text_embedding" in params:  # texts unseen in training are represented by their features alone
            params["text_embedding"] = {"embedding": jnp.where(seen, params["text_embedding"]["embedding"], 0)}
        if population is not None:
            shared = population["params"]
            both = [part for part in ("population_reward", "text_bias") if part in shared and part in params]
            params |= {part: jax.tree.map(jnp.asarray, shared[part]) for part in both}
        if name == MAIN and self.config.train.factor_steps and "text_embedding" in params:
            table = self.dataset.splits["train"].table
            observed = np.stack(observed_responses(table))
            user, text, liked = jnp.asarray(observed[:, ~thresholds[observed[1]]])
            factors, offsets = factorise(
                jax.random.key(self.config.seed),
                user,
                text,
                liked,
                users=len(table.chosen),
                texts=len(self.dataset.texts),
                width=self.config.model.width,
                steps=self.config.train.factor_steps,
            )
            params["text_embedding"] = {"embedding": jnp.where(seen, factors, 0)}
            if "text_offset" in params:  # for an encoder that reads responses
                # The encoder's offset is s(y) plus this; the sum is the offset of the factorisation.
                everything = jnp.arange(len(self.dataset.texts))
                features = jnp.asarray(self.dataset.features)
                encoded: Any = model.apply(
                    {**variables, "params": params}, everything, features, method="encode_responses"
                )
                already = encoded.offset[:, 0] - params["text_offset"]["embedding"][:, 0]
                params["text_offset"] = {"embedding": jnp.where(seen, (offsets - already)[:, None], 0)}
        return params

    def texts(self, rows: Any) -> None:
        """See `Task`; features need no padding."""

    def whose(self, rows: People) -> str:
        """Names of the users, if the split has names for them."""
        if isinstance(self.config.data, Synthetic):
            return ""
        users = self.dataset.splits["train"].users
        return f" (people {', '.join(sorted({users[int(u)] for u in np.asarray(rows.episode.user)}))})"

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """See `Task`."""
        del split  # its texts are rows of the data set's features
        samples = self.config.evaluate.samples
        return reward_predictor(self.model(name), jnp.asarray(self.dataset.features), samples)

    def finish(self, directory: Path, variables: PyTree) -> None:
        """See `Task`; nothing is written."""


def draw_people(draw: Callable[[Key[Array, ""], Any], Episode]) -> Draw:
    """Draws the rows of a batch, given how to draw one episode; each user's episode and noise use their own key."""

    def rows(keys: Key[Array, " users"], tables: Any) -> People:
        key_draw, key_noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        return People(jax.vmap(draw, in_axes=(0, None))(key_draw, tables), key_noise)

    return rows


def forward(
    model: rewards.RewardModel,
    episode: Episode,
    features: Array | None,
    noise: Array | None,
    objective: str,
    train: bool,
) -> tuple[Array, Posterior | None, DiagGaussian | None]:
    """log p(targets | z) for the latents that the objective samples, and the two distributions of its KL term.

    To be used as `model.apply(..., method=forward)`.

    Args:
      episode: of every user, with ids of texts if `features` (texts, d) are given, or with features.
      noise: standard normal (users, samples, width); None for the mean of a latent.
      objective: see `latent_roles`.
      train: turns dropout on.

    Returns:
      (samples, users, targets) log-probabilities, and two distributions or None.
    """
    text_mask = model.text_mask() if train else None

    def log_likelihood(z: Array | None) -> Array:
        return model.log_likelihood(episode.targets, z, features, train, text_mask)

    if model.latent == "none":
        return log_likelihood(None), None, None
    if model.latent == "group":
        return log_likelihood(model.group_z(episode.group)[None]), None, None
    if noise is None:
        q = model.infer(episode.context, features, train, text_mask)
        return log_likelihood(q.mean[None]), None, None

    def infer(context: Comparisons) -> Posterior:
        return model.posterior(context, features, noise, train, text_mask)

    q_context = infer(episode.context)
    q_targets = infer(episode.targets) if objective == "published" else None
    q_union = infer(join_choices(episode.context, episode.targets)) if objective == "elbo" else None
    sampled_from, reference = latent_roles(objective, q_context, q_targets, q_union)  # type: ignore[arg-type]
    assert isinstance(sampled_from, Posterior)
    return log_likelihood(jnp.moveaxis(sampled_from.points, -2, 0)), sampled_from, reference


def reward_loss(model: rewards.RewardModel, objective: NeuralProcess) -> Loss:
    """The neural-process loss of a reward model, a mean over users, with penalties on learnt texts."""

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        people, features = batch.rows, batch.tables.features
        noise = None
        if model.sampled:
            width = model.noise_width
            noise = jax.vmap(lambda k: antithetic_noise(k, objective.samples, width))(people.noise)
        out, updated = model.apply(
            variables,
            people.episode,
            features,
            noise,
            objective.kind,
            True,
            method=forward,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        log_likelihood, sampled_from, reference = out
        mask, weight = people.episode.targets.mask, people.episode.targets.weight
        marginal = objective.kind == "predictive"
        log_weights = None if sampled_from is None else sampled_from.log_weights

        def of_user(log_p: Array, mask: Array, q: Any, other: Any, weights: Any, weight: Any) -> Any:
            return neural_process_loss(log_p, mask, q, other, objective.kl_weight, marginal, weights, weight)

        in_axes = (1, 0, 0, 0, 0, 0)
        terms = jax.vmap(of_user, in_axes)(log_likelihood, mask, sampled_from, reference, log_weights, weight)
        trained = dict(variables["params"])
        if model.keep_population and model.latent != "none":
            for part in ("text_bias", "population_reward"):  # they are not trained
                trained.pop(part, None)
        weights = penalties_of(objective) if batch.tables.penalties is None else batch.tables.penalties
        total = terms.loss.mean() + penalties(trained, weights)
        metrics: Metrics = {"loss": total, "nll": terms.nll.mean(), "kl": terms.kl.mean()}
        if people.episode.targets.others is None:
            metrics["rewards/accuracies"] = masked_mean(
                preference_accuracy(log_likelihood).mean(0), mask, weight
            ).mean()
        else:
            metrics["probability"] = masked_mean(jnp.exp(log_likelihood).mean(0), mask, weight).mean()
        if updated:
            metrics["batch_stats"] = updated["batch_stats"]
        return total, metrics

    return loss


def ensemble_loss(losses: Sequence[Loss]) -> Loss:
    """The sum of the losses of the models of an ensemble, which share episodes and noise; metrics are means."""

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""]) -> tuple[Array, Metrics]:
        totals, metrics = [], []
        for one, own, own_key in zip(losses, separate(variables), jax.random.split(key, len(losses)), strict=True):
            total, found = one(own, batch, own_key)
            totals.append(total)
            metrics.append(found)
        return sum(totals, jnp.zeros(())), jax.tree.map(lambda *x: sum(x, jnp.zeros(())) / len(x), *metrics)

    return loss


def _configs_of_members(config: RewardConfig, model: NpBtl) -> list[RewardConfig]:
    """The configuration of each model of an ensemble; seeds of models of the same kind differ."""
    out = []
    for i, (one, _) in enumerate(members_of(model)):
        own = dataclasses.replace(config, model=one, seed=config.seed + i % model.members * _APART)
        if model.parts:
            part = model.parts[i // model.members]
            penalties = {"response_penalty": part.response_penalty, "text_penalty": part.text_penalty}
            own.objective = dataclasses.replace(config.objective, **penalties)
            own.optim = dataclasses.replace(config.optim, learning_rate=part.learning_rate)
            own.train = dataclasses.replace(config.train, factor_steps=part.factor_steps)
        out.append(own)
    return out


def penalties_of(objective: NeuralProcess) -> dict[str, Any]:
    """The weights of the penalties, by the part of the parameters."""
    return {
        "target_encoder": objective.response_penalty,
        "population_reward": objective.population_penalty,
        "text_embedding": objective.text_penalty,
        "text_bias": objective.text_bias_penalty,
    }


def penalties(params: PyTree, weights: Mapping[str, Any]) -> Array:
    """½ Σ weight · ‖·‖² of the response encoder, of the population reward, and of what is learnt per text.

    That of texts is per text, not per batch: a text that few people judged stays close to the prediction of its
    features.
    """
    penalty = jnp.zeros(())
    for name, weight in weights.items():
        if name in params and not (isinstance(weight, float) and weight == 0):
            penalty = penalty + 0.5 * weight * sum(
                (jnp.sum(w**2) for w in jax.tree.leaves(params[name])), jnp.zeros(())
            )
    return penalty
