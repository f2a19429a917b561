"""Whether what is written is still good: a text that scores by breaking is not steering."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fssa_jax.lm.base import Base
from fssa_jax.lm.writer import Samples, sampled_log_probs

_N, _LOOP = 3, 4  # words of an n-gram, and how often one is repeated in a loop

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts ↦ unit vectors (texts, d) of a sentence encoder."""


def distinct(text: str, n: int = _N) -> float:
    """The share of distinct n-grams among those of the words of a text; 1 if it has none (arXiv 1510.03055).

    >>> from fssa_jax.evaluate.quality import distinct
    >>> distinct("so it is so it is so it is")
    0.42857142857142855
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def loops(text: str) -> bool:
    """Whether a text repeats itself at once: up to eight words or one character, four times in a row or more.

    >>> from fssa_jax.evaluate.quality import loops
    >>> loops("I think so. I think so. I think so. I think so."), loops("no no, not that")
    (True, False)
    """
    words = text.lower().split()
    for n in range(1, 9):
        run = 0
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            if run >= n * (_LOOP - 1):
                return True
    longest, run = 0, 0
    for before, after in itertools.pairwise(text):
        run = run + 1 if before == after and not after.isspace() and after not in ".-_=*#" else 0
        longest = max(longest, run)
    return longest >= 2 * _LOOP


def quality(base: Base, samples: Samples, questions: Sequence[str], embed: Embed | None) -> dict[str, Any]:
    """Measures of responses that need no judge.

    Args:
      base: the unsteered language model.
      samples: the responses.
      questions: (rows,) what the user said last.
      embed: a sentence encoder; None for none.

    Returns:
      `nll_per_token`: of the responses under the base, in nats. `distinct`: the mean share of distinct trigrams.
      `without_loops`: the share without `loops`. An empty response counts as 0 in both.
      `topic`: the mean cosine of response and question, with `embed`.
      `words`: the mean number of words.
    """
    each = sampled_log_probs(base, samples)
    out: dict[str, Any] = {
        "nll_per_token": -float(sum(one.sum() for one in each) / max(sum(map(len, each)), 1)),
        "distinct": float(np.mean([distinct(text) if text.strip() else 0.0 for text in samples.texts])),
        "without_loops": float(np.mean([bool(text.strip()) and not loops(text) for text in samples.texts])),
        "words": float(np.mean([len(text.split()) for text in samples.texts])),
    }
    said = [i for i, text in enumerate(samples.texts) if text.strip() and questions[i].strip()]
    if embed is not None and said:
        answers, asked = (embed([texts[i] for i in said]) for texts in (samples.texts, questions))
        out["topic"] = float((answers * asked).sum(-1).mean())
    return out
