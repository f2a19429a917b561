"""A trained model, used for one person: infers their latent from choices and adapts to it without training."""

import dataclasses
import logging
import math
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Generation
from fssa_jax.data.dataset import number_texts, seen_in_training
from fssa_jax.data.features import Text
from fssa_jax.data.thresholds import check_thresholds, is_threshold, text_of, thresholds_of
from fssa_jax.errors import UserError
from fssa_jax.lm.peft import save_lora
from fssa_jax.lm.scoring import device_texts, table_log_probs
from fssa_jax.lm.token_table import TokenTable, encode_table, no_texts
from fssa_jax.lm.writer import Writer, said
from fssa_jax.models.decoder import place_sizes
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.adapters import PLACES, AdapterTree, adapter_rows, check_adapters, with_strength
from fssa_jax.ops.padding import bucket
from fssa_jax.ops.sampling import Sampling
from fssa_jax.people.choices import Choice, as_choices, as_prompt, as_texts, texts_of_choices
from fssa_jax.tasks.policy import PolicyTables, PolicyTask, reads_new_texts
from fssa_jax.tasks.policy_scorer import PolicyScorer
from fssa_jax.tasks.predictor import Infer, make_inference
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.reward_models import check_lists, model_settings
from fssa_jax.tasks.reward_predictor import make_posterior
from fssa_jax.tasks.states import adapted_layers
from fssa_jax.types import Comparisons, DiagGaussian, Posterior, PyTree

_log = logging.getLogger(__name__)


class PersonModel:
    """A trained model for new people: infers their latents and scores responses for them.

    `fssa_jax.load(workdir)` returns one; for a policy a `PersonPolicy`, which also generates text.

    >>> import fssa_jax
    >>> model = fssa_jax.load("runs/mine")
    >>> prompt, short, long = "question 0", "word1 word2", "word3 word4 word5 word6 word7 word8 word9 word10 word11"
    >>> latent = model.infer([(prompt, long, short)])  # chosen, rejected
    >>> rewards = model.score(latent, [(prompt, long), (prompt, short)])
    >>> rewards.shape
    (2,)
    """

    limit: int | None = None
    """Maximum number of choices per person; None for no limit."""

    def __init__(self, task: RewardTask | PolicyTask, reader: Any, reward: RewardModel, variables: PyTree):
        """`reader` is the module that infers z, `reward` the reward model whose encoder it uses."""
        self.task, self.reward = task, reward
        samples = task.config.evaluate.samples
        self._infer: Infer = make_posterior(reward, samples) if reader is reward else make_inference(reader)
        self._variables = jax.device_put(variables)
        self._number = number_texts((), task.dataset.texts)
        self._judged = seen_in_training(task.dataset)

    @property
    def levels(self) -> tuple[float, ...]:
        """The lowest rating of every level but the first; () for a model that was trained without levels of ratings."""
        return tuple(self.task.dataset.report.get("levels", ()))

    @property
    def window(self) -> int:
        """The largest number of choices per person in training and evaluation."""
        return max(self.task.config.train.max_context, *self.task.config.evaluate.k)

    def infer(self, choices: Sequence[Any]) -> DiagGaussian:
        """q(z | choices), (1, m); `scale` is the uncertainty, 0 if the encoder has none.

        Args:
          choices: of one person, in any order: (prompt, chosen, rejected) tuples, or rows (data/rows.py). Empty for a
            new person. A choice of one among more than two has further responses. (prompt, response, True) is a thumb
            up, False a thumb down. A choice that is listed twice counts once.

        Raises:
          UserError: something that is not a choice, or more choices than the model supports.

        >>> q = model.infer([{"prompt": "question 0", "response_a": "word1", "response_b": "word3", "choice": 0}])
        >>> q.mean.shape == q.scale.shape == latent.mean.shape
        True
        """
        return self.infer_people([self.checked(choices)])

    def infer_people(self, people: Sequence[Sequence[Any]]) -> DiagGaussian:
        """q(z | choices) of many people in one forward pass, (people, m). Row i equals `infer` on person i.

        Raises:
          UserError: see `infer`; or no people.

        >>> two = model.infer_people([[("question 0", "word1 word2", "word3")], []])
        >>> two.mean.shape == (2, latent.mean.shape[1])
        True
        """
        if not people:
            raise UserError("no people to infer; give the choices of one or more")
        if any(isinstance(choice, str) for choices in people for choice in choices):
            raise UserError("a choice instead of a person; give a list of choices for each person, or call infer")
        checked = [self.checked(choices, f"person {i}") for i, choices in enumerate(people)]
        texts = texts_of_choices(checked)
        for i, choices in enumerate(checked):
            check_thresholds(texts_of_choices([choices]), thresholds_of(self.task.dataset.featuriser), f"person {i}")
        judged = [text for text in texts if not is_threshold(text)]
        unjudged = sum(text not in self._number or not self._judged[self._number[text]] for text in judged)
        self._warn_of_unknown(unjudged, len(judged))
        # All sizes are padded: one program for any number of choices and new texts within the window.
        rows = bucket(len(people)) if len(people) > 1 else 1
        n = max(self.window, *(bucket(len(choices)) for choices in checked if len(choices) > self.window), 1)
        width = max((len(choice) - 1 for choices in checked for choice in choices), default=2)
        number, table = self._table(texts, bucket(max(len(texts), width * self.window)))
        ids, mask = np.full((rows, n, width), -1, np.int32), np.zeros((rows, n), bool)
        for row, choices in enumerate(checked):
            mask[row, : len(choices)] = True
            for i, (prompt, *responses) in enumerate(choices):
                ids[row, i, : len(responses)] = [number[text_of(prompt, response)] for response in responses]
        at = jnp.asarray(np.maximum(ids, 0))
        context = Comparisons(at[..., 0], at[..., 1], jnp.asarray(mask))
        if width > 2:
            check_lists(model_settings(self.task.config), "the choices of a person")
            context = dataclasses.replace(context, others=at[..., 2:], listed=jnp.asarray(ids[..., 2:] >= 0))
        q = self._infer(self._variables, context, table)
        return jax.tree.map(lambda x: x[: len(people)], q)

    def score(self, latent: DiagGaussian, responses: Sequence[Text]) -> np.ndarray:
        """(n,) rewards r(x, y, z) of (prompt, response) pairs for a person, in nats; the mean over q(z | choices).

        Raises:
          UserError: an empty response, or a latent of several people.

        >>> model.score(latent, [("question 0", "word1 word2"), ("question 0", "word3")]).shape
        (2,)
        """
        if len(latent.mean) != 1:
            raise UserError(f"a latent of {len(latent.mean)} people: score responses for one person at a time")
        return (self.weights(latent)[:, 0] @ self.sampled_rewards(latent, responses)[:, 0]).astype(np.float32)

    def weights(self, latent: DiagGaussian) -> np.ndarray:
        """(samples, people) weights of the points of q(z | choices), which `sampled_rewards` are of."""
        if isinstance(latent, Posterior):
            return np.exp(np.asarray(latent.log_weights)).T
        return np.ones((1, len(latent.mean)))

    def sampled_rewards(self, latent: DiagGaussian, responses: Sequence[Text]) -> np.ndarray:
        """(samples, people, n) rewards of responses for every person and point of q.

        softmax(r) is calibrated, but for lapses. A latent that is not a `Posterior`, such as a blend, has one
        point, its mean.
        """
        texts = as_texts(responses)
        if not texts:
            return np.zeros((*self.weights(latent).shape, 0), np.float32)
        self._warn_of_unread(texts)
        number, table = self._table(list(dict.fromkeys(texts)), bucket(len(texts)))
        ids = np.resize([number[text] for text in texts], bucket(len(texts)))
        rewards = self._rewards(self._variables, latent, jnp.asarray(ids), table)
        return np.asarray(rewards)[..., : len(texts)]

    @cached_property
    def _rewards(self) -> Any:
        def apply(module: RewardModel, q: DiagGaussian, ids: jax.Array, table: jax.Array) -> jax.Array:
            asked = jnp.broadcast_to(ids[None], (len(q.mean), len(ids)))
            if not isinstance(q, Posterior):
                return module.rewards(asked, q.mean[None], table)[..., 0]
            values = module.rewards(asked, jnp.moveaxis(q.points, -2, 0), table)[..., 0]
            return values * q.temperature[None, :, None]

        return jax.jit(lambda v, q, ids, table: self.reward.apply(v, q, ids, table, method=apply))

    def checked(self, choices: Sequence[Any], who: str = "a person") -> list[Choice]:
        """The choices of a person as tuples, each once.

        Raises:
          UserError: see `infer`.
        """
        places = (f"choice {j} of {who}" for j in range(len(choices)))
        read = (as_choices(choice, place, self.levels) for choice, place in zip(choices, places, strict=True))
        each = list(dict.fromkeys(choice for of_row in read for choice in of_row))
        if self.limit is not None and len(each) > self.limit:
            raise UserError(f"{len(each)} choices of {who}, but the policy was made for {self.limit}; leave some out")
        return each

    def _table(self, texts: Sequence[Text], size: int) -> tuple[Mapping[Text, int], jax.Array]:
        """(text ↦ row, features (rows, d)) of texts; the number of rows does not depend on the number of texts.

        Texts with a learnt embedding keep their ids, so the table begins with all known texts.
        """
        data = self.task.dataset
        new = [text for text in texts if text not in self._number]
        described = dict(zip(new, data.featuriser.transform(new), strict=True)) if new else {}
        table = np.zeros((size, data.features.shape[1]), np.float32)
        if self.reward.learnt_texts:
            for i, text in enumerate(new):
                table[i] = described[text]
            number = ChainMap({text: len(data.texts) + i for i, text in enumerate(new)}, self._number)
            return number, jnp.concatenate([self._features, jnp.asarray(table)])
        for i, text in enumerate(texts):
            table[i] = described[text] if text in described else data.features[self._number[text]]
        return {text: i for i, text in enumerate(texts)}, jnp.asarray(table)

    @cached_property
    def _features(self) -> jax.Array:
        return jnp.asarray(self.task.dataset.features)

    @property
    def _texts_alone(self) -> bool:
        """Whether z affects only texts that training rows judge."""
        return bool(self.reward.learnt_texts) and self.reward.target == "none"

    def _warn_of_unknown(self, unjudged: int, total: int) -> None:
        if unjudged and self._texts_alone:
            said = "%d of %d texts were never judged in training: they tell nothing about the person; for new texts "
            _log.warning(said + "train with --config.model.learn_texts=no", unjudged, total)

    def _warn_of_unread(self, texts: Sequence[Text]) -> None:
        new = sum(text not in self._number or not self._judged[self._number[text]] for text in texts)
        if new and self._texts_alone:
            said = "%d of %d responses were never judged in training: they are ranked only by their general appeal; "
            _log.warning(said + "for new texts train with --config.model.learn_texts=no", new, len(texts))


class PersonPolicy(PersonModel):
    """A trained policy for new people: also adapts the language model to them, and generates text.

    >>> import fssa_jax
    >>> policy = fssa_jax.load("runs/policy")
    >>> latent = policy.infer([("question 0", "word3 word4 word5 word6 word7", "word1 word2")])
    >>> texts = policy.generate(policy.adapt(latent), ["question 0"])
    >>> len(texts)
    1
    """

    task: PolicyTask

    def __init__(self, task: PolicyTask, variables: PyTree):
        conditioner = task.conditioner()
        assert task.reward is not None
        super().__init__(task, conditioner, task.reward, variables)
        self.limit = self.window
        self._adapt = jax.jit(lambda variables, z: conditioner.apply(variables, z, method="adapt"))
        none = PolicyTables(device_texts(no_texts()), base=task.base.variables)
        self._scorer = PolicyScorer(conditioner, task.base.decoder, none, task.config.objective)

    def sampled_rewards(self, latent: DiagGaussian, responses: Sequence[Text]) -> np.ndarray:
        """(1, people, n) rewards β [log π(y | x, z) − log π_ref(y | x)] at the means of the latents, in nats."""
        texts = as_texts(responses)
        people = len(latent.mean)
        if not texts:
            return np.zeros((1, people, 0), np.float32)
        base, config = self.task.base, self.task.config
        limit = base.decoder.config.max_length
        tokens = encode_table(base.tokenizer, texts, max_length=limit)
        if tokens.too_long:
            raise UserError(f"response {tokens.too_long[0]}: longer than the {limit} positions of the model")
        # Padded to few shapes, the table too, so that new responses rarely trigger a compilation.
        rows, width = bucket(len(texts)), bucket(tokens.tokens.shape[1])
        padded = np.pad(tokens.tokens, ((0, 0), (0, width - tokens.tokens.shape[1])))
        ids = np.resize(np.arange(len(texts)), rows)
        filled = TokenTable(padded[ids], tokens.starts[ids], tokens.ends[ids], tokens.lengths[ids], [])
        reference = jnp.asarray(table_log_probs(base, tokens)[ids])
        tables = PolicyTables(device_texts(filled), reference, base=base.variables)
        each, every = np.repeat(np.arange(people), rows), np.tile(np.arange(rows), people)
        scorer = self._scorer.of(tables)
        ratios = scorer.log_ratios(self._variables, np.asarray(latent.mean), each, every, groups=1)
        return config.objective.beta * ratios.reshape(1, people, rows)[..., : len(texts)]

    def adapt(self, latent: DiagGaussian, strength: float | None = None) -> AdapterTree:
        """Adapters of the language model at the means of latents (rows, m), one row each.

        The change that an adapter makes is multiplied by `strength`: 0 is the language model itself, 1 what was
        trained, None `config.evaluate.generate.strength`. What all people share, `config.policy.adapter.shared`, stays.

        Raises:
          UserError: a strength that is negative or not finite.

        >>> stronger = policy.adapt(latent, strength=1.5)
        """
        strength = self.task.config.evaluate.generate.strength if strength is None else strength
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"strength {strength:g}: give a number from 0 up")
        return with_strength(self._adapt(self._variables, latent.mean), strength)

    def generate(
        self, adapters: AdapterTree | None, prompts: Sequence[Any], *, seed: int = 0, settings: Generation | None = None
    ) -> list[str]:
        """Generates a response to each prompt, a text or a list of messages.

        Adapters have one row per prompt, or one row for all prompts. None is the base itself.

        Raises:
          UserError: adapters of another base, or a number of rows that does not match the prompts.

        >>> same = policy.generate(policy.adapt(latent), ["question 0", "question 1"], seed=3)
        >>> same == policy.generate(policy.adapt(latent), ["question 0", "question 1"], seed=3)
        True
        """
        base = self.task.base
        if isinstance(prompts, str):
            raise UserError("one prompt instead of a list of them; give [prompt]")
        if isinstance(adapters, DiagGaussian):
            raise UserError("a latent instead of adapters; give adapt(latent)")
        asked = [as_prompt(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
        if not asked:
            return []
        if adapters is not None:
            config = base.decoder.config
            try:
                own = adapted_layers(self.task.config.policy.adapter, config)
                check_adapters(adapters, place_sizes(config, PLACES), own)
            except ValueError as error:
                raise UserError(f"{base.directory}: {error}") from error
            rows = adapter_rows(adapters)
            if rows not in (None, 1, len(asked)):
                raise UserError(f"adapters of {rows} people for {len(asked)} prompts; give one row for each, or one")
        chosen = settings or self.task.config.evaluate.generate
        writer = Writer(base, Sampling(chosen.temperature, top_p=chosen.top_p), chosen.max_new)
        return writer(asked, adapters, seed).texts

    def best_of(
        self,
        latent: DiagGaussian,
        prompts: Sequence[Any],
        number: int = 8,
        *,
        seed: int = 0,
        settings: Generation | None = None,
        strength: float | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Samples `number` responses to each prompt for a person, and ranks them by the person's reward model.

        Returns:
          Per prompt (response, reward in nats at the mean of the latent), the best first; equal responses once.

        Raises:
          UserError: a latent of several people, or a reward model that cannot read new texts; see `generate`.

        >>> [ranked] = policy.best_of(latent, ["question 0"], 4)
        >>> ranked[0][1] >= ranked[-1][1]
        True
        """
        if len(latent.mean) != 1:
            raise UserError(f"a latent of {len(latent.mean)} people: write for one person at a time")
        if number < 1:
            raise UserError(f"best of {number}: give a number of responses from 1 up")
        if not reads_new_texts(self.task):
            raise UserError(
                "the policy has no trained reward model that reads new texts, so it cannot rank what is written; train "
                "np_btl with --config.model.learn_texts=no and features of texts, and name it in "
                "config.encoder.init_from"
            )
        asked = [as_prompt(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
        adapters = self.adapt(latent, strength)
        each = [self.generate(adapters, prompts, seed=seed + i, settings=settings) for i in range(number)]
        out = []
        for prompt, texts in zip(asked, zip(*each, strict=True), strict=True):
            distinct = list(dict.fromkeys(texts))
            read = self.task.dataset.featuriser.transform([(prompt, said(text)) for text in distinct])
            rewards = np.asarray(self._model_rewards(self._variables, jnp.asarray(read), latent.mean))
            order = np.argsort(-rewards, kind="stable")
            out.append([(distinct[i], float(rewards[i])) for i in order])
        return out

    @cached_property
    def _model_rewards(self) -> Any:
        """(variables, features (n, d), z (1, m)) ↦ (n,) rewards of the reward model."""
        conditioner = self.task.conditioner()

        def of_model(module: Any, read: jax.Array, z: jax.Array) -> jax.Array:
            return module.reward_model.rewards(read[None], z[None])[0, 0, :, 0]

        return lambda variables, read, z: conditioner.apply(variables, read, z, method=of_model)

    def export(self, latent: DiagGaussian, directory: str | Path, name: str = "") -> Path:
        """Writes the adapter of one person as a LoRA in the format of PEFT, for use with the base in other libraries.

        Its strength is that of `adapt`. PEFT and vLLM name an adapter by its directory. With the person's `name`, it is
        a subdirectory of that name.

        Returns:
          The directory that was written.

        Raises:
          UserError: a latent of several people, or a policy whose adapters are FiLM.
        """
        if len(latent.mean) != 1:
            raise UserError(f"a latent of {len(latent.mean)} people: export the adapter of one person at a time")
        base = self.task.base
        target = Path(directory) / re.sub(r"[^\w.-]+", "-", name).strip(".-") if name else Path(directory)
        name_of_base = base.lora.base if base.lora else self.task.config.policy.base
        save_lora(target, self.adapt(latent), base.decoder.config, name_of_base, under=base.lora)
        return target
