"""Scores of responses for simulated people, whose true weights on the attributes of texts are known."""

import itertools
from typing import Any

import numpy as np

from fssa_jax.data.benchmarks.simulated import SimulatedPeople
from fssa_jax.lm.writer import Samples


def styles_of(people: SimulatedPeople, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Attributes (rows, attributes) as 0/1, and well-formedness (rows,), of responses to prompts of the benchmark."""
    found = [people.read(prompt, text) for prompt, text in zip(samples.prompts, samples.texts, strict=True)]
    return np.stack([style for style, _ in found]), np.array([well for _, well in found])


def movement(style: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(attributes,) P(attribute | people who want it) − P(attribute | people who do not want it); NaN if undefined."""
    out = np.full(style.shape[1], np.nan)
    for a in range(style.shape[1]):
        liked, disliked = weights[:, a] > 0, weights[:, a] < 0
        if liked.any() and disliked.any():
            out[a] = style[liked, a].mean() - style[disliked, a].mean()
    return out


def true_reward(people: SimulatedPeople, style: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(rows,) reward of responses under each person's true weights, in nats."""
    return people.scale * ((style - 0.5) * weights).sum(-1)


def best_reward(people: SimulatedPeople, posterior: np.ndarray, weights: np.ndarray, temperature: float) -> np.ndarray:
    """(rows,) expected true reward of the policy that writes styles s with p(s) ∝ exp(E[r(s) | C] / temperature).

    This is the optimum of DPO for the posterior mean reward (arXiv 2305.18290, eq. 4), with a base that writes every
    style equally often. The temperature is β times the sampling temperature. `posterior` (rows, people) is p(u | C) of
    all possible people; `weights` (rows, attributes) are the true weights.
    """
    every = np.array(list(itertools.product((0, 1), repeat=weights.shape[1])))
    rewards = people.rewards(every, people.every()[0])  # (styles, people)
    log_p = posterior @ rewards.T / temperature
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (p * people.rewards(every, weights).T).sum(1)


def summary(people: SimulatedPeople, style: np.ndarray, well: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Movement, true reward and well-formed share of responses to people with these weights."""
    moved = movement(style, weights)
    return {
        "movement": float(np.nanmean(moved)) if np.isfinite(moved).any() else None,
        "movement_by_attribute": {
            name: None if np.isnan(m) else float(m) for name, m in zip(people.attributes, moved, strict=True)
        },
        "reward": float(true_reward(people, style, weights).mean()),
        "well_formed": float(well.mean()),
    }
