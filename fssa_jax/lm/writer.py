"""Generates responses to prompts in the chat template, with adapters per row."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fssa_jax.lm.base import Base
from fssa_jax.lm.generate import generate
from fssa_jax.lm.scoring import Texts, log_probs_of
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


class Writer:
    """Generates responses with a base and adapters, one row per prompt.

    Of a prompt that leaves no room for the response the beginning of what the user wrote is left out with `cut`;
    otherwise it is a `UserError`.
    """

    def __init__(self, base: Base, sampling: Sampling, max_new: int, cut: bool = False):
        self.base, self.sampling, self.max_new, self._cut = base, sampling, max_new, cut
        self._room = max(base.decoder.config.max_length - max_new, 1)

    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """Number of prompts that leave no room for the response."""
        return sum(len(self.base.tokenizer.prompt(prompt).tokens) > self._room for prompt in prompts)

    def __call__(self, prompts: Sequence[str], adapters: AdapterTree | None, seed: int = 0) -> Samples:
        """A response to each prompt; row i of the adapters is for prompt i."""
        before = [self.base.tokenizer.prompt(prompt) for prompt in prompts]
        ids = [((row.cut_left(self._room) if self._cut else None) or row).tokens for row in before]
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
        )
        texts = self.base.tokenizer.decode(out.tokens)
        return Samples(list(prompts), texts, ids, out.tokens, out.stopped_by)


def sampled_kl(base: Base, samples: Samples, adapters: AdapterTree) -> np.ndarray:
    """(rows,) log π(y | x, z) − log π_ref(y | x) of responses, in nats.

    The mean over responses sampled at temperature 1 estimates KL(π ‖ π_ref).
    """
    rows = [
        (p, [*p, *t, *([] if end is None else [end])])
        for p, t, end in zip(samples.prompt_tokens, samples.tokens, samples.ends, strict=True)
    ]
    width = bucket(max(len(row) for _, row in rows))
    tokens = np.zeros((len(rows), width), np.int32)
    for i, (_, row) in enumerate(rows):
        tokens[i, : len(row)] = row
    starts, ends = (np.array([len(part[j]) for part in rows], np.int32) for j in (0, 1))
    texts, ids = Texts(*(jnp.asarray(x) for x in (tokens, starts, ends))), jnp.arange(len(rows))
    own = log_probs_of(base.decoder, base.variables, texts, ids, adapters)
    return np.asarray(own) - np.asarray(log_probs_of(base.decoder, base.variables, texts, ids))
