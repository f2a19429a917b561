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

from fssa_jax.config import AdamW, Film, FrozenEncoder, LoraCore, NoEncoder, PolicyConfig
from fssa_jax.data.dataset import Dataset, Split, featuriser_of_texts
from fssa_jax.data.features import GivenFeaturiser
from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base
from fssa_jax.lm.packing import number_prompts, packed_lengths
from fssa_jax.lm.texts import Texts
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.models.decoder import DecoderConfig, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.attention import attention_is_xla
from fssa_jax.ops.choices import responses_by_choice
from fssa_jax.ops.episodes import draw_episode
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.policy_loss import policy_loss
from fssa_jax.tasks.policy_scorer import PolicyScorer
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.reward import People, draw_people
from fssa_jax.tasks.reward_models import make_model
from fssa_jax.tasks.states import adapted_layers, spared_layers, texts_with_states
from fssa_jax.tasks.task import MAIN, POPULATION, SPECIALIST
from fssa_jax.train.state import make_optimizer
from fssa_jax.train.step import Draw, Loss
from fssa_jax.types import ChoiceTable, Episode, Leaf, PyTree

TEACHER = "encoder"
"""Key in the `trained` argument of `PolicyTask.start`: the variables of the reward model for the warm start."""

_WORTH_SHARING = 0.1  # of the tokens of targets, in prompts that are computed once

_log = logging.getLogger(__name__)


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
        config, decoder = self.config, self.base.decoder
        return policy_loss(self.conditioner(name), decoder, config.objective, config.encoder, plan, self.shares_prompts)

    def texts(self, rows: People) -> Int[Array, "users targets n"]:
        """See `Task`: all responses of every target; in one row if its prompt is shared."""
        by_choice = responses_by_choice(rows.episode.targets)
        return by_choice if self.shares_prompts else by_choice[..., None]

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether the prompt of a choice is computed once for all its responses."""
        choice, decoder = self.config.train.share_prompts, self.base.decoder
        if choice != "auto":
            return choice == "yes"
        shape = decoder.config
        if not attention_is_xla(decoder.implementation, decoder.dtype, shape.head_dim, shape.attention_softcap):
            return False
        with jax.ensure_compile_time_eval():  # the first to ask may be a function that is being traced
            return _shared_tokens(self.tokens, self.ranked or self.dataset.splits["train"].table) >= _WORTH_SHARING

    def whose(self, rows: People) -> str:
        """Names of the users."""
        users = self.dataset.splits["train"].users
        return f" (people {', '.join(sorted({users[int(u)] for u in np.asarray(rows.episode.user)}))})"

    def scorer(self, name: str, split: Split) -> PolicyScorer:
        """The scorer of a model on the texts of a split."""
        tables, objective = self.tables_of(split), self.config.objective
        return PolicyScorer(self.conditioner(name), self.base.decoder, tables, objective, self.shares_prompts)

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """See `Task`."""
        return self.scorer(name, split).predictor

    def finish(self, directory: Path, variables: PyTree) -> None:
        """See `Task`; nothing is written."""


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


def _shared_tokens(tokens: TokenTable, table: ChoiceTable) -> float:
    """The share of the tokens of targets that need not be computed where prompts are shared."""
    mask = np.asarray(table.mask)[:, 1]
    sides = [np.asarray(table.chosen)[:, 1][mask], np.asarray(table.rejected)[:, 1][mask]]
    if table.others is not None:
        others = np.asarray(table.others)[:, 1][mask]
        sides += list(np.where(others >= 0, others, sides[0][:, None]).T)
    ids = np.stack(sides, -1)
    texts = Texts(None, tokens.starts, tokens.ends, prompts=number_prompts(tokens.tokens, tokens.starts))
    whole = tokens.ends[ids].sum()
    return float(1 - np.asarray(packed_lengths(texts, jnp.asarray(ids))).sum() / whole) if whole else 0.0


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


def reads_new_texts(task: PolicyTask) -> bool:
    """Whether the policy has a reward model that was trained, and that reads what is written.

    One from `init_from` was trained. One that is new is trained only by its auxiliary loss.
    """
    encoder: Any = task.config.encoder
    trained = bool(getattr(encoder, "init_from", "")) or getattr(encoder, "auxiliary_weight", 0) > 0
    given = isinstance(featuriser_of_texts(task.dataset.featuriser), GivenFeaturiser)
    return trained and task.reward is not None and task.reward.target != "none" and not given
