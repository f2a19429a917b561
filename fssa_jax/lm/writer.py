"""Generates responses to prompts in the chat template, with adapters per row."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.lm.base import Base
from fssa_jax.lm.generate import generate
from fssa_jax.lm.messages import messages_of, readable
from fssa_jax.lm.scoring import each_log_prob_of, log_probs_of
from fssa_jax.lm.texts import Texts
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.padding import bucket
from fssa_jax.ops.sampling import Sampling


@dataclasses.dataclass
class Samples:
    """Responses, one per row: prompts, texts and tokens, and the stop token of each, if any."""

    prompts: list[str]
    texts: list[str]
    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    ends: list[int | None]

    @property
    def finished(self) -> list[bool]:
        """Whether each response ended with a stop token."""
        return [end is not None for end in self.ends]

    def scored(self) -> tuple[Texts, np.ndarray]:
        """The rows for scoring, on the device, and (rows,) the number of tokens with the stop token."""
        rows = [
            (p, [*p, *t, *([] if end is None else [end])])
            for p, t, end in zip(self.prompt_tokens, self.tokens, self.ends, strict=True)
        ]
        width = bucket(max(len(row) for _, row in rows))
        tokens = np.zeros((len(rows), width), np.int32)
        for i, (_, row) in enumerate(rows):
            tokens[i, : len(row)] = row
        starts, ends = (np.array([len(part[j]) for part in rows], np.int32) for j in (0, 1))
        return Texts(jnp.asarray(tokens), jnp.asarray(starts), jnp.asarray(ends)), ends - starts


class Writer:
    """Generates responses with a base and adapters, one row per prompt.

    Of a prompt that leaves no room for the response the beginning of what the user wrote is left out with `cut`;
    otherwise it is a `UserError`. The `devices` share the rows, whose number must be a multiple of theirs.
    """

    def __init__(self, base: Base, sampling: Sampling, max_new: int, cut: bool = False, devices: Sequence[Any] = ()):
        self.base, self.sampling, self.max_new, self._cut, self._devices = base, sampling, max_new, cut, devices
        self._room = max(base.decoder.config.max_length - max_new, 1)

    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """Number of prompts that leave no room for the response."""
        return sum(len(self.base.tokenizer.prompt(prompt).tokens) > self._room for prompt in prompts)

    def __call__(
        self, prompts: Sequence[str], adapters: AdapterTree | None, seed: int = 0, seeds: Sequence[int] | None = None
    ) -> Samples:
        """A response to each prompt; row i of the adapters is for prompt i.

        `seeds`, one per prompt, replace those that are drawn from `seed`: a response then depends on its own alone.
        """
        before = [self.base.tokenizer.prompt(prompt) for prompt in prompts]
        ids = [((row.cut_left(self._room) if self._cut else None) or row).tokens for row in before]
        if seeds is None:
            seeds = np.random.default_rng(seed).integers(0, 2**31, len(ids)).tolist()
        out = generate(
            self.base.decoder,
            self.base.variables,
            ids,
            self.max_new,
            adapters=adapters,
            sampling=self.sampling,
            seeds=seeds,
            stop_tokens=self.base.tokenizer.stop_tokens,
            tokens_per_call=32,
            devices=self._devices,
        )
        texts = self.base.tokenizer.decode(out.tokens)
        # A token may be a part of a character: where the limit cuts one, such as an emoji, none of it is shown.
        texts = [
            text.rstrip("\ufffd") if end is None else text for text, end in zip(texts, out.stopped_by, strict=True)
        ]
        return Samples(list(prompts), texts, ids, out.tokens, out.stopped_by)


def said(text: str) -> str:
    """A response as a reward model reads it: nothing, which no row of data holds, is three dots."""
    return text if text.strip() else "…"


def check_room(base: Base, prompts: Iterable[str], max_new: int) -> None:
    """Raises `UserError` for a prompt that does not fit into the model's positions together with `max_new` tokens.

    Also for a system message that no chat template says how to write.
    """
    positions = base.decoder.config.max_length
    plain = not getattr(base.tokenizer.raw, "chat_template", None)
    for prompt in dict.fromkeys(prompts):
        if plain and any(message["role"] == "system" for message in messages_of(prompt)):
            raise UserError(
                f"{base.directory}: has no chat template, so it cannot take a system message; leave it out, or give an "
                "instruction-tuned model"
            )
        number = len(base.tokenizer.prompt(prompt).tokens)
        if number + max_new > positions:
            raise UserError(
                f"prompt {readable(prompt)[:30]!r}: {number} tokens and --max_new={max_new} do not fit into the "
                f"{positions} positions of the model; shorten it or lower --max_new"
            )


def sampled_kl(base: Base, samples: Samples, adapters: AdapterTree) -> np.ndarray:
    """(rows,) log π(y | x, z) − log π_ref(y | x) of responses, in nats.

    The mean over responses sampled at temperature 1 estimates KL(π ‖ π_ref).
    """
    texts, _ = samples.scored()
    ids = jnp.arange(len(samples.texts))
    own = log_probs_of(base.decoder, base.variables, texts, ids, adapters)
    return np.asarray(own) - np.asarray(log_probs_of(base.decoder, base.variables, texts, ids))


def sampled_log_probs(base: Base, samples: Samples, adapters: AdapterTree | None = None) -> list[np.ndarray]:
    """log π(token | before) of every token of each response, with its stop token, in nats, at temperature 1."""
    texts, number = samples.scored()
    each = np.asarray(each_log_prob_of(base.decoder, base.variables, texts, jnp.arange(len(number)), adapters))
    starts = np.asarray(texts.starts) - 1  # place i is of token i + 1
    return [row[start : start + n] for row, start, n in zip(each, starts, number, strict=True)]
