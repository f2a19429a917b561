"""Supervised fine-tuning of a language model on texts, independent of people's choices: of all weights, or a LoRA."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from fssa_jax.config import AdamW, SftConfig, Styles
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.dataset import Dataset, Split, texts_of
from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base
from fssa_jax.lm.peft import SHARED_CARD, save_lora
from fssa_jax.lm.safetensors import save_params
from fssa_jax.lm.scoring import table_log_probs, text_log_probs
from fssa_jax.lm.texts import Texts
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.models.decoder import Decoder, place_sizes
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.padding import Plan
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.tasks.states import adapted_layers, spared_layers, texts_with_states
from fssa_jax.tasks.task import MAIN
from fssa_jax.train.state import make_optimizer
from fssa_jax.train.step import Batch, Draw, Loss, Metrics
from fssa_jax.types import Leaf, PyTree

_log = logging.getLogger(__name__)

_MANY_PROMPTS = 40
_VALIDATION_TEXTS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SftTables:
    """Inputs of a step on the device.

    Attributes:
      texts: the token table.
      rows: (n,) ids of the texts that batches are drawn from.
      base: variables of the language model, if a LoRA of it is trained.
    """

    texts: Texts
    rows: Leaf
    base: PyTree = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DrawnTexts:
    """The rows of a batch: ids of texts, and 1 / the mean number of response tokens in the whole batch."""

    ids: Leaf
    scale: Leaf


@dataclasses.dataclass(frozen=True)
class SftTask:
    """Training of a language model; the best by validation is written to WORKDIR/model.

    That is a checkpoint, or with `config.policy.lora` a LoRA in the format of PEFT.
    """

    config: SftConfig
    dataset: Dataset
    base: Base
    tokens: TokenTable

    names = (MAIN,)

    @property
    def rows(self) -> int:
        """Texts per batch."""
        return self.config.train.texts

    def steps(self, name: str) -> int:
        """See `Task`."""
        return self.config.train.steps

    def reads(self, name: str) -> bool:
        """See `Task`."""
        return False

    def optim(self, name: str) -> AdamW:
        """See `Task`."""
        return self.config.optim

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """See `Task`."""
        return make_optimizer(self.config.optim, self.config.train.steps)

    def start(self, name: str, trained: Mapping[str, PyTree]) -> PyTree:
        """The parameters of the base in float32, or those of a LoRA that changes nothing yet."""
        if self.lora is not None:
            return jax.jit(self.lora.init)(jax.random.key(self.config.seed), jnp.zeros((1, 1)))
        return {"params": jax.tree.map(lambda x: jnp.array(x, jnp.float32), self.base.variables["params"])}

    def tables(self, split: str) -> SftTables:
        """See `Task`."""
        base = self.base.variables if self.lora is not None else None
        return SftTables(self._on_device, jnp.asarray(self.split_texts(split)), base)

    @cached_property
    def _on_device(self) -> Texts:
        settings, layers = self.config.policy, 0
        if self.lora is not None:
            layers = spared_layers(self.base, self.tokens, self.lora.layers, settings.cache_states)
        return texts_with_states(self.base, self.tokens, layers)

    @cached_property
    def lora(self) -> Hypernetwork | None:
        """What emits the LoRA that is trained; None if all weights are."""
        settings, decoder = self.config.policy.lora, self.base.decoder.config
        if not settings.rank:
            return None
        return Hypernetwork(
            "lora_core",
            places=(),
            layers=adapted_layers(settings, decoder, "config.policy.lora"),
            shared_places=place_sizes(decoder, settings.places),
            shared_rank=settings.rank,
            shared_scale=(settings.alpha or settings.rank) / settings.rank,
        )

    def draw(self, name: str) -> Draw:
        """See `Task`; texts are drawn with replacement."""
        return draw_texts

    def loss(self, name: str, plan: Plan | None = None) -> Loss:
        """See `Task`."""
        return sft_loss_of(self.base.decoder, plan, self.lora)

    def texts(self, rows: DrawnTexts) -> Int[Array, "texts 1"]:
        """See `Task`."""
        return rows.ids[:, None]

    def whose(self, rows: DrawnTexts) -> str:
        """The first prompts of the batch."""
        prompts = sorted({self.dataset.texts[int(i)][0][:30] for i in np.asarray(rows.ids)})
        return f" (texts about {', '.join(map(repr, prompts[:5]))}{' …' if len(prompts) > 5 else ''})"

    def predictor(self, name: str, split: Split) -> Callable[[PyTree], Predictor]:
        """Raises `UserError`: a base does not predict choices."""
        raise UserError("a language model without a policy does not predict choices; train np_dpo on it")

    @cached_property
    def _held_out(self) -> np.ndarray:
        return self.split_texts("val")[:_VALIDATION_TEXTS]

    def validate(self, variables: PyTree) -> tuple[dict[str, float], list[str]]:
        """NLL per token on held-out texts."""
        rows, tokens = self._held_out, self.tokens.rows(self._held_out)
        number = int((tokens.ends - tokens.starts).sum())
        if self.lora is None:
            log_p = table_log_probs(self.base, tokens, jax.device_put(variables))
        else:
            below = jax.tree.map(lambda x: x[rows], self._on_device)
            log_p = table_log_probs(self.base, tokens, adapters=self._adapters(variables), below=below)
        return {"val/nll": -float(log_p.sum()) / number}, []

    def _adapters(self, variables: PyTree) -> AdapterTree:
        """The LoRA, for everybody."""
        assert self.lora is not None
        return emitted(self.lora, variables)

    def finish(self, directory: Path, variables: PyTree) -> None:
        """Writes the checkpoint directory, or the LoRA."""
        config, best = self.base.decoder.config, {"params": variables["params"]}
        if self.lora is None:
            save_params(directory / "model", best, config, self.base.directory)
        else:
            base = self.config.policy.base
            save_lora(directory / "model", self._adapters(best), config, base, card=SHARED_CARD)
        _log.info("sft: the model is in %s", directory / "model")

    def split_texts(self, split: str) -> np.ndarray:
        """Texts for training ("train") or validation ("val").

        These are the texts of training people. On `styles` they are all texts, because its base must know all topics,
        except those that `train.unread` excludes. One prompt in twenty is for validation; if there are few
        prompts, one text in twenty.
        """
        fits, unread = self.tokens.lengths > 0, self.config.train.unread
        if not isinstance(self.config.data, Styles) or unread == "topics":
            known = np.zeros(len(fits), bool)
            known[texts_of(self.dataset.splits["train"].table)] = True
            fits &= known
        elif unread == "targets":
            asked = asked_prompts(self.dataset)
            fits &= np.array([prompt not in asked for prompt, _ in self.dataset.texts])
        rows = np.flatnonzero(fits)
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(self.dataset.texts[r][0] for r in rows))}
        place = np.arange(len(rows))
        if len(number) >= _MANY_PROMPTS:
            place = np.array([number[self.dataset.texts[r][0]] for r in rows])
        held_out = place % 20 == 7 % max(len(rows), 1)
        return rows[held_out] if split == "val" else rows[~held_out]


def draw_texts(keys: Key[Array, " texts"], tables: SftTables) -> DrawnTexts:
    """Draws one text per key."""
    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, tables.rows.shape[0]))(keys)
    ids = tables.rows[place]
    tokens = (tables.texts.ends[ids] - tables.texts.starts[ids]).astype(jnp.float32)
    # Divided by the mean over the whole batch, so that parts and devices add up to one batch.
    return DrawnTexts(ids, jnp.broadcast_to(1 / tokens.mean(), ids.shape))


def sft_loss_of(decoder: Decoder, plan: Plan | None = None, lora: Hypernetwork | None = None) -> Loss:
    """−log π(response | prompt) per token, a mean over texts; of the decoder's variables, or of a LoRA's."""

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        del key
        weights, adapters = variables, None
        if lora is not None:
            weights, adapters = batch.tables.base, emitted(lora, variables)
        log_p = text_log_probs(decoder, weights, batch.tables.texts, batch.rows.ids, adapters, plan)
        value = -(log_p * batch.rows.scale).mean()
        return value, {"loss": value}

    return loss


def emitted(lora: Hypernetwork, variables: PyTree) -> AdapterTree:
    """The LoRA of a hypernetwork that emits nothing else, so that it depends on no latent."""
    out: Any = lora.apply(variables, jnp.zeros((1, 1)))
    return out


def asked_prompts(dataset: Dataset) -> set[str]:
    """The prompts that held-out people of `styles` are asked.

    If these include all prompts of a topic, its last prompt is left out, so that a base that excludes them still sees
    every topic.
    """
    of_topic: dict[str | None, list[str]] = {}
    for prompt in dict.fromkeys(prompt for prompt, _ in dataset.texts):
        of_topic.setdefault(styles.topic_of(prompt), []).append(prompt)
    asked = {dataset.texts[i][0] for name in ("val", "test") for i in texts_of(dataset.splits[name].table, 1)}
    return asked - {prompts[-1] for prompts in of_topic.values() if asked.issuperset(prompts)}
