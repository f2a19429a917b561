"""Simulated people with hidden weights on the attributes of texts: whoever they are, their choices have an exact limit.

A person u has a weight of −1, 0 or +1 on each attribute, and chooses by Bradley-Terry-Luce:

    r_u(y) = scale · Σ_a w_u,a x_a(y),   x_a(y) = ±½,   p(y⁺ ≻ y⁻) = σ(r_u(y⁺) − r_u(y⁻))
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

# P(w = −1, 0, +1). Symmetric: every person has an equally likely opposite, so the population has no preference. Any
# accuracy above ½ comes from the person's context, and another person's context is worth nothing.
_PRIOR = {-1: 0.4, 0: 0.2, 1: 0.4}


@dataclasses.dataclass(frozen=True)
class SimulatedPeople:
    """All people with weights on the attributes of a benchmark.

    Attributes:
      attributes: their names.
      scale: of rewards, in nats.
      read: (prompt, response) ↦ the attributes of a text as 0/1, and whether it is well-formed.

    >>> from fssa_jax.data.benchmarks.simulated import SimulatedPeople
    >>> people = SimulatedPeople(("short", "loud"), scale=2.0, read=lambda x, y: ([len(y) < 9, "!" in y], bool(y)))
    >>> weights, log_prior = people.every()
    >>> weights.shape, people.name(weights[0])
    ((9, 2), '−short −loud')
    """

    attributes: tuple[str, ...]
    scale: float
    read: Callable[[str, str], tuple[np.ndarray, bool]]

    def every(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights (3ᵃ, a) of all possible people, and their log prior (3ᵃ,)."""
        weights = np.array(list(itertools.product(_PRIOR, repeat=len(self.attributes))), np.float32)
        probability = np.prod(np.vectorize(_PRIOR.__getitem__)(weights.astype(int)), axis=1)
        return weights, np.log(probability).astype(np.float32)

    def name(self, weights: np.ndarray) -> str:
        """For example "+long −emoji": the attributes on which the person has a weight."""
        words = [("+" if w > 0 else "−") + name for w, name in zip(weights, self.attributes, strict=True) if w]
        return " ".join(words) or "indifferent"

    def rewards(self, found: Int[np.ndarray, "*texts a"], weights: Float[np.ndarray, "people a"]) -> np.ndarray:
        """Rewards (*texts, people) of texts with the attributes `found`, 0 or 1 each, in nats."""
        return self.scale * (found.astype(np.float32) - 0.5) @ weights.T

    def choose(
        self,
        rng: np.random.Generator,
        weights: Float[np.ndarray, "people a"],
        pairs: Int[np.ndarray, "people rows 2"],
        found: Int[np.ndarray, "texts a"],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choices of people among pairs of texts: ids of the chosen and of the rejected, (people, rows) each."""
        style = found[pairs].astype(np.float32)
        delta = self.scale * np.einsum("na,nra->nr", weights, style[:, :, 0] - style[:, :, 1])
        first_wins = rng.random(delta.shape) < 1 / (1 + np.exp(-delta))
        return np.where(first_wins, pairs[..., 0], pairs[..., 1]), np.where(first_wins, pairs[..., 1], pairs[..., 0])
