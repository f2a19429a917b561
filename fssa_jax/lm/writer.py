"""Responses that a policy writes for people, and what is true of them."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import GenerateConfig
from fssa_jax.data.benchmarks import styles
from fssa_jax.lm.base import Base
from fssa_jax.lm.generate import generate
from fssa_jax.lm.tokenizer import prompt_tokens, stop_tokens
from fssa_jax.ops.adapters import AdapterTree
from fssa_jax.ops.padding import bucket
from fssa_jax.ops.sampling import Sampling
from fssa_jax.tasks.policy import PolicyData


@dataclasses.dataclass
class Samples:
    """Responses, one a row: their prompts, texts and tokens, and the token that ended each, if one did."""

    prompts: list[str]
    texts: list[str]
    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    ends: list[int | None]

    @property
    def finished(self) -> list[bool]:
        """Whether each came to its end."""
        return [end is not None for end in self.ends]


class Writer:
    """Generates responses of a base with adapters, one row each.

    With `cut` a prompt that leaves no room for the response loses its beginning; else it is a `UserError`.
    """

    def __init__(self, base: Base, settings: GenerateConfig, cut: bool = False):
        self.base, self.settings, self._cut = base, settings, cut
        self._stops = stop_tokens(base.tokenizer)
        self._room = max(base.decoder.config.max_length - settings.max_new, 1)

    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """How many of the prompts leave no room."""
        return sum(len(prompt_tokens(self.base.tokenizer, prompt)) > self._room for prompt in prompts)

    def __call__(self, prompts: Sequence[str], adapters: AdapterTree | None, seed: int = 0) -> Samples:
        """A response to each prompt; row i of the adapters is for prompt i."""
        before = {p: prompt_tokens(self.base.tokenizer, p) for p in dict.fromkeys(prompts)}
        ids = [before[p][-self._room :] if self._cut else before[p] for p in prompts]
        seeds = np.random.default_rng(seed).integers(0, 2**31, len(ids)).tolist()
        sampling = Sampling(self.settings.temperature, top_p=self.settings.top_p)
        out = generate(
            self.base.decoder,
            self.base.variables,
            ids,
            self.settings.max_new,
            adapters=adapters,
            sampling=sampling,
            seeds=seeds,
            stop_tokens=self._stops,
            tokens_per_call=32,
        )
        texts = self.base.tokenizer.batch_decode(out.tokens, skip_special_tokens=True)
        return Samples(list(prompts), texts, ids, out.tokens, out.stopped_by)


def sampled_kl(base: Base, samples: Samples, adapters: AdapterTree) -> np.ndarray:
    """(rows,) log π(y | x, z) − log π_ref(y | x) of responses in nats; of those sampled at temperature 1 the mean
    estimates KL(π ‖ π_ref)."""
    rows = [
        (p, [*p, *t, *([] if end is None else [end])])
        for p, t, end in zip(samples.prompt_tokens, samples.tokens, samples.ends, strict=True)
    ]
    width = bucket(max(len(row) for _, row in rows))
    tokens = np.zeros((len(rows), width), np.int32)
    for i, (_, row) in enumerate(rows):
        tokens[i, : len(row)] = row
    starts, ends = (np.array([len(part[j]) for part in rows], np.int32) for j in (0, 1))
    data, ids = PolicyData(*(jnp.asarray(x) for x in (tokens, starts, ends))), jnp.arange(len(rows))
    own = base.text_log_probs(base.variables, data, ids, adapters)
    return np.asarray(own) - np.asarray(base.text_log_probs(base.variables, data, ids))


def styles_of(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """(rows, attributes) 0/1 and (rows,) whether well-formed, of responses to prompts of the `styles` benchmark."""
    found = [styles.style_of_text(prompt, text) for prompt, text in zip(samples.prompts, samples.texts, strict=True)]
    return np.stack([style for style, _ in found]), np.array([well for _, well in found])


def movement(style: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(attributes,) P(attribute | people who want it) − P(attribute | people who do not want it); NaN without both."""
    out = np.full(style.shape[1], np.nan)
    for a in range(style.shape[1]):
        liked, disliked = weights[:, a] > 0, weights[:, a] < 0
        if liked.any() and disliked.any():
            out[a] = style[liked, a].mean() - style[disliked, a].mean()
    return out


def true_reward(style: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows,) reward of responses under the people's own weights, in nats (`styles`)."""
    return styles.SCALE * ((style - 0.5) * weights).sum(-1)


def best_reward(posterior: np.ndarray, weights: np.ndarray, temperature: float) -> np.ndarray:
    """(rows,) expected true reward of who writes styles s with probability ∝ exp(E[r(s) | C] / temperature).

    That is the optimum of DPO for the posterior's mean reward (arXiv 2305.18290, eq. 4), from a base that writes every
    style equally often; the temperature is β times that of sampling. `posterior` (rows, people) p(u | C) of all
    possible people of `styles`; `weights` (rows, attributes) the people's own.
    """
    every = np.array(list(itertools.product((0, 1), repeat=weights.shape[1])))
    rewards = styles.SCALE * (every - 0.5) @ styles.people()[0].T  # (styles, people)
    log_p = posterior @ rewards.T / temperature
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p * (styles.SCALE * weights @ (every - 0.5).T)).sum(1)


def summary(style: np.ndarray, well: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """What is true of responses to people with these weights."""
    moved = movement(style, weights)
    return {
        "movement": float(np.nanmean(moved)) if np.isfinite(moved).any() else None,
        "movement_by_attribute": {
            name: None if np.isnan(m) else float(m) for name, m in zip(styles.ATTRIBUTES, moved, strict=True)
        },
        "reward": float(true_reward(style, weights).mean()),
        "well_formed": float(well.mean()),
    }
