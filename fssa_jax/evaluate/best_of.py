"""Best of n: the baseline that needs no training. Sample n responses, and take the one that a reward model prefers.

Its divergence from what is sampled is at most log n − (n − 1)/n nats (Beirami et al., arXiv 2401.01879).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from fssa_jax.lm.writer import Samples, Writer
from fssa_jax.ops.adapters import AdapterTree

Judge = Callable[[Samples, np.ndarray], np.ndarray]
"""(samples, index of each person) ↦ rewards (rows,) under a reward model, in nats."""


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n, in nats.

    >>> from fssa_jax.evaluate.best_of import kl_bound
    >>> kl_bound(1), round(kl_bound(4), 3)
    (0.0, 0.636)
    """
    return math.log(n) - (n - 1) / n


def first_best(rewards: Float[np.ndarray, "prompts n"], n: int) -> Int[np.ndarray, " prompts"]:
    """The number of the best of the first n responses to each prompt.

    >>> import numpy as np
    >>> from fssa_jax.evaluate.best_of import first_best
    >>> first_best(np.array([[1.0, 3.0, 5.0], [2.0, 1.0, 0.0]]), 2).tolist()
    [1, 0]
    """
    return rewards[:, :n].argmax(axis=1)


def best_of(
    writer: Writer,
    judge: Judge,
    prompts: Sequence[str],
    people: np.ndarray,
    ns: Sequence[int],
    adapters: AdapterTree | None = None,
    seed: int = 0,
) -> dict[int, Samples]:
    """n ↦ the best of n responses to each prompt; the responses of a smaller n are among those of a larger one.

    Args:
      writer: samples the responses.
      judge: the reward model.
      prompts: to answer.
      people: (prompts,) the person who asks.
      ns: numbers of responses.
      adapters: one row per prompt; None for the base.
      seed: of the sampling.
    """
    each = [writer(prompts, adapters, seed + i) for i in range(max(ns))]
    rewards = np.stack([judge(samples, people) for samples in each], axis=1)
    return {n: chosen(each, first_best(rewards, n)) for n in ns}


def chosen(each: Sequence[Samples], which: np.ndarray) -> Samples:
    """Row i of the samples `which[i]`."""
    names = ("prompts", "texts", "prompt_tokens", "tokens", "ends")
    return Samples(*([getattr(each[w], name)[i] for i, w in enumerate(which)] for name in names))
