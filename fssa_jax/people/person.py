"""The four calls: infer a person from choices, score responses for them, adapt the language model, generate."""

import logging
import math
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import GenerateConfig
from fssa_jax.config.reward import read_json
from fssa_jax.data.build import texts_in
from fssa_jax.data.dataset import number_texts, seen_in_training
from fssa_jax.data.features import Text
from fssa_jax.data.rows import Row
from fssa_jax.data.token_table import encode_table
from fssa_jax.errors import UserError
from fssa_jax.evaluate.policy_scores import PolicyScorer
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import TrainedPolicy, trained_policy
from fssa_jax.experiment.warm_start import is_policy
from fssa_jax.lm.base import reference_log_probs
from fssa_jax.lm.peft import save_lora
from fssa_jax.lm.writer import Writer
from fssa_jax.models.decoder import place_sizes
from fssa_jax.ops.adapters import PLACES, AdapterTree, adapter_rows, check_adapters
from fssa_jax.ops.padding import bucket
from fssa_jax.people.rank import read_choices
from fssa_jax.tasks.policy import PolicyData
from fssa_jax.types import Comparisons, DiagGaussian

_log = logging.getLogger(__name__)

Choice = tuple[str, str, str]  # (prompt, chosen, rejected)


class Steerer:
    """A trained policy, ready for new people. Nothing is trained for them.

    >>> from fssa_jax import Steerer
    >>> steerer = Steerer.load("runs/policy")
    >>> prompt, short, long = "question 0", "word1 word2", "word3 word4 word5 word6 word7 word8 word9 word10 word11"
    >>> latent = steerer.infer([(prompt, long, short)])  # chosen, rejected
    >>> rewards = steerer.score(latent, [(prompt, long), (prompt, short)])
    >>> adapters = steerer.adapt(latent)
    >>> texts = steerer.generate(adapters, [prompt])
    >>> len(rewards), len(texts)
    (2, 1)
    """

    def __init__(self, work: PolicyWorkdir, policy: TrainedPolicy):
        self.work, self.policy = work, policy
        self._adapt = jax.jit(lambda variables, z: policy.conditioner.apply(variables, z, method="adapt"))
        self._infer = jax.jit(
            lambda variables, context, table: policy.conditioner.apply(variables, context, table, method="infer")
        )
        self._variables = jax.device_put(policy.variables)
        self._number = number_texts((), work.dataset.texts)
        self._judged = seen_in_training(work.dataset)
        self._scorer = PolicyScorer(policy.conditioner, work.base.decoder, work.data("test"), work.config.objective)

    @classmethod
    def load(cls, workdir: str | Path, base: str = "") -> "Steerer":
        """The policy of a work directory; `base` is where its language model is now, if that has moved.

        Raises:
          UserError: no work directory of a policy that reads choices, or no checkpoint in it.
        """
        path = Path(workdir)
        if (path / "config.json").is_file() and not is_policy(path):
            if "model_type" in read_json(path / "config.json"):
                raise UserError(f"{path}: a language model; give the workdir of a policy that steers it")
            raise UserError(f"{path}: a reward model ranks responses but writes none; give the workdir of a policy")
        work = PolicyWorkdir.open(path, base)
        if work.config.is_sft or work.config.policy.adapter.latent != "context":
            raise UserError(f"{path}: does not read choices; train np_dpo")
        policy = trained_policy(work)
        assert policy is not None
        for warning in work.unfinished():
            if warning.startswith("main"):
                _log.warning("%s", warning)
        return cls(work, policy)

    @property
    def window(self) -> int:
        """The most choices of a person that the policy was trained or evaluated with."""
        return max(self.work.config.train.max_context, *self.work.config.evaluate.k)

    def infer(self, choices: Sequence[Choice]) -> DiagGaussian:
        """q(z | choices), (1, m): `scale` is the uncertainty, 0 where the encoder has none (`NPEncoder.gaussian`).

        Args:
          choices: (prompt, chosen, rejected) of one person, in any order; none for a person who is not known yet.

        Raises:
          UserError: more choices than the policy was made for.

        >>> q = steerer.infer([("question 0", "word1 word2", "word3")])
        >>> q.mean.shape == q.scale.shape == latent.mean.shape
        True
        """
        return self.infer_people([choices])

    def infer_people(self, people: Sequence[Sequence[Choice]]) -> DiagGaussian:
        """q(z | choices) of many people in one forward pass, (people, m): a row each, as `infer` gives it alone.

        Raises:
          UserError: nobody, or more choices of a person than the policy was made for.

        >>> two = steerer.infer_people([[("question 0", "word1 word2", "word3")], []])
        >>> texts = steerer.generate(steerer.adapt(two), ["question 0", "question 0"])  # one for each
        >>> two.mean.shape == (2, latent.mean.shape[1]), len(texts)
        (True, 2)
        """
        if not people:
            raise UserError("no people to infer; give the choices of one or more")
        if any(isinstance(choice, str) for choices in people for choice in choices):
            raise UserError("a choice in place of a person; give a list of choices for each person, or call infer")
        n = self.window
        for i, choices in enumerate(people):
            who = "a person" if len(people) == 1 else f"person {i}"
            if len(choices) > n:
                raise UserError(f"{len(choices)} choices of {who}, but the policy was made for {n}; leave some out")
            for j, choice in enumerate(choices):
                _check_choice(choice, f"choice {j} of {who}")
        texts = list(dict.fromkeys(text for choices in people for p, a, b in choices for text in ((p, a), (p, b))))
        unjudged = sum(text not in self._number or not self._judged[self._number[text]] for text in texts)
        self._warn_of_unknown(unjudged, len(texts))
        # Padded sizes of everything: one program for one person, however many choices and new texts there are.
        rows = bucket(len(people)) if len(people) > 1 else 1
        number, table = self._table(texts, 2 * n * rows)
        ids, mask = np.zeros((2, rows, n), np.int32), np.zeros((rows, n), bool)
        for row, choices in enumerate(people):
            mask[row, : len(choices)] = True
            for i, (p, a, b) in enumerate(choices):
                ids[:, row, i] = number[p, a], number[p, b]
        context = Comparisons(jnp.asarray(ids[0]), jnp.asarray(ids[1]), jnp.asarray(mask))
        q = self._infer(self._variables, context, table)
        return jax.tree.map(lambda x: x[: len(people)], q)

    def _table(self, texts: Sequence[Text], size: int) -> tuple[Mapping[Text, int], jax.Array]:
        """(text ↦ row, features (rows, d)) of these texts; the number of rows does not depend on how many there are.

        Texts with a learnt embedding keep their numbers, so that the table begins with all that are known.
        """
        data = self.work.dataset
        new = [text for text in texts if text not in self._number]
        described = dict(zip(new, data.featuriser.transform(new), strict=True)) if new else {}
        table = np.zeros((size, data.features.shape[1]), np.float32)
        if self.work.reward.learnt_texts:
            for i, text in enumerate(new):
                table[i] = described[text]
            number = ChainMap({text: len(data.texts) + i for i, text in enumerate(new)}, self._number)
            return number, jnp.concatenate([self._features, jnp.asarray(table)])
        for i, text in enumerate(texts):
            table[i] = described[text] if text in described else data.features[self._number[text]]
        return {text: i for i, text in enumerate(texts)}, jnp.asarray(table)

    @cached_property
    def _features(self) -> jax.Array:
        return jnp.asarray(self.work.dataset.features)

    def _warn_of_unknown(self, unjudged: int, total: int) -> None:
        model = self.work.reward
        if unjudged and model.learnt_texts and model.target == "none":
            _log.warning(
                "%d of %d texts were never judged in training: what they say about the person is lost; for new texts "
                "train the encoder with --config.model.learn_texts=no",
                unjudged,
                total,
            )

    def score(self, latent: DiagGaussian, responses: Sequence[Text]) -> np.ndarray:
        """(n,) rewards β [log π(y | x, z) − log π_ref(y | x)] of (prompt, response) at the latent's mean, in nats.

        Raises:
          UserError: a response that is empty, or too long for the model, or a latent of several people.

        >>> steerer.score(latent, [("question 0", "word1 word2"), ("question 0", "word3")]).shape
        (2,)
        """
        if len(latent.mean) != 1:
            raise UserError(f"a latent of {len(latent.mean)} people: score responses for one person at a time")
        if isinstance(responses, str):
            raise UserError("a text in place of a list of (prompt, response); give [(prompt, response)]")
        for i, text in enumerate(responses):
            if not (isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)):
                raise UserError(f"response {i}: needs two texts, (prompt, response); got {text!r:.80}")
        if not len(responses):
            return np.zeros(0, np.float32)
        base, config = self.work.base, self.work.config
        tokens = encode_table(base.tokenizer, responses, max_length=base.decoder.config.max_length)
        if tokens.too_long:
            limit = base.decoder.config.max_length
            raise UserError(f"response {tokens.too_long[0]}: longer than the {limit} positions of the model")
        # In few shapes, of the table too: other responses rarely compile anything.
        rows, width = bucket(len(responses)), bucket(tokens.tokens.shape[1])
        padded = np.zeros((rows, width), np.int32)
        ids = np.resize(np.arange(len(responses)), rows)
        padded[:, : tokens.tokens.shape[1]] = tokens.tokens[ids]
        data = PolicyData(
            *(jnp.asarray(x) for x in (padded, tokens.starts[ids], tokens.ends[ids])),
            base=base.variables,
            reference=jnp.asarray(reference_log_probs(base, tokens)[ids]),
        )
        z, person = np.asarray(latent.mean), np.zeros(rows, int)
        ratios = self._scorer.of(data).log_ratios(self._variables, z, person, np.arange(rows), groups=1)
        return config.objective.beta * ratios[: len(responses)]

    def adapt(self, latent: DiagGaussian) -> AdapterTree:
        """Adapters of the language model at the means of latents (rows, m), a row each; see `combine_adapters`.

        >>> from fssa_jax import combine_adapters
        >>> import jax.numpy as jnp
        >>> twice_as_strong = combine_adapters(steerer.adapt(latent), jnp.array([[2.0]]))
        """
        return self._adapt(self._variables, latent.mean)

    def generate(
        self,
        adapters: AdapterTree | None,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        settings: GenerateConfig | None = None,
    ) -> list[str]:
        """A response to each prompt; adapters have a row for each, or one for all. None is the base itself.

        Raises:
          UserError: adapters of another base, or of another number of people than there are prompts.

        >>> same = steerer.generate(steerer.adapt(latent), ["question 0", "question 1"], seed=3)
        >>> same == steerer.generate(steerer.adapt(latent), ["question 0", "question 1"], seed=3)
        True
        """
        if isinstance(prompts, str):
            raise UserError("one prompt in place of a list of them; give [prompt]")
        if isinstance(adapters, DiagGaussian):
            raise UserError("a latent in place of adapters; give steerer.adapt(latent)")
        if not prompts:
            return []
        if adapters is not None:
            config = self.work.base.decoder.config
            try:
                check_adapters(adapters, place_sizes(config, PLACES), config.layers)
            except ValueError as error:
                raise UserError(f"{self.work.base.directory}: {error}") from error
            rows = adapter_rows(adapters)
            if rows not in (None, 1, len(prompts)):
                raise UserError(f"adapters of {rows} people for {len(prompts)} prompts; give one row for each, or one")
        writer = Writer(self.work.base, settings or self.work.config.evaluate.generate)
        return writer(prompts, adapters, seed).texts

    def save_lora(self, latent: DiagGaussian, directory: str | Path) -> None:
        """Writes the adapter of one person as a LoRA in the format of PEFT, for other libraries and the same base.

        Raises:
          UserError: a latent of several people, or a policy whose adapters are FiLM.
        """
        if len(latent.mean) != 1:
            raise UserError(f"a latent of {len(latent.mean)} people: save the adapter of one person at a time")
        base = self.work.base
        save_lora(Path(directory), self.adapt(latent), base.decoder.config, str(base.directory))


def _check_choice(choice: Any, place: str) -> None:
    """Raises `UserError` if this is not (prompt, chosen, rejected)."""
    if not (isinstance(choice, tuple | list) and len(choice) == 3 and all(isinstance(text, str) for text in choice)):
        raise UserError(f"{place}: needs three texts, (prompt, chosen, rejected); got {choice!r:.80}")
    if choice[1] == choice[2] or not (choice[1].strip() and choice[2].strip()):
        raise UserError(f"{place}: the responses are empty or identical; leave it out")


def choices_in(path: str | Path) -> list[Choice]:
    """The choices of one person in a file of rows (`launch.steer --choices`), as `Steerer.infer` takes them.

    Raises:
      UserError: bad rows, no rows, or several people.
    """
    return as_choices(read_choices(str(path)))


def as_choices(rows: Iterable[Row]) -> list[Choice]:
    """Rows of one person as `Steerer.infer` takes them."""
    rows = list(rows)
    texts = list(texts_in(rows))
    return [(a[0], a[1], b[1]) for a, b in zip(texts[::2], texts[1::2], strict=True)]


def blended(latents: Sequence[DiagGaussian], weights: Sequence[float]) -> DiagGaussian:
    """Σ w_i z_i of people, as one point; latents are what `Steerer.infer` gives.

    Raises:
      UserError: nobody, not one weight for each person, or a weight that is not a number.

    >>> import jax.numpy as jnp
    >>> from fssa_jax import DiagGaussian, blended
    >>> one, two = (DiagGaussian(jnp.full((1, 2), m), jnp.ones((1, 2))) for m in (0.0, 4.0))
    >>> blended([one, two], [0.75, 0.25]).mean.tolist()
    [[1.0, 1.0]]
    """
    if len(latents) != len(weights):
        raise UserError(f"{len(weights)} weights for {len(latents)} people; give one for each")
    if not latents:
        raise UserError("no people to blend; give latents that Steerer.infer made")
    if not all(math.isfinite(w) for w in weights):
        raise UserError(f"weights {list(weights)}: each must be a number")
    mean = sum(w * q.mean for w, q in zip(weights, latents, strict=True))
    return DiagGaussian(mean, jnp.zeros_like(mean))
