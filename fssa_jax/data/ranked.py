"""Pairs of responses that a reward model judges far apart: more to learn from than pairs that a person happened to see.

A person chose between two responses to a prompt. Where a data set has more responses to that prompt, the reward model
knows which of them this person would like best and least, and a policy can be trained on those.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from fssa_jax.data.dataset import texts_of
from fssa_jax.types import ChoiceTable

Rewards = Callable[[Int[np.ndarray, " users"], Int[np.ndarray, "users n"]], Float[np.ndarray, "users n"]]
"""Rewards in nats of texts, n ids per user, for these users."""

_TEXTS = 2**18  # per call, which bounds the memory


def ranked_pairs(
    table: ChoiceTable, prompts: Int[np.ndarray, " texts"], rewards: Rewards, rng: np.random.Generator
) -> ChoiceTable:
    """The table with every target replaced by two responses to its prompt, among all that occur in the table.

    With the rewards r of a person, p(y⁺) ∝ exp r(y⁺) and p(y⁻) ∝ exp(−r(y⁻)), independently: Luce's choice of the best
    and of the worst. If both are the same response, the best and the least liked one are taken. A target whose prompt
    has one response in the table stays, and so do thumbs and ratings, whose sides have different prompts.

    Only the targets of the result are to be used: its choices are all between two, also contexts of one among more.

    Args:
      table: choices of the users.
      prompts: a number per prompt, of every text.
      rewards: of texts for users.
      rng: of the draws.

    >>> import numpy as np
    >>> from fssa_jax.data.ranked import ranked_pairs
    >>> from fssa_jax.types import ChoiceTable
    >>> ids = np.arange(4).reshape(1, 2, 2)  # the user's targets are 2 > 6 and 3 > 7, those of their context 0 > 4, …
    >>> table = ChoiceTable(ids, ids + 4, np.full((1, 2), 2), np.zeros(1, int))
    >>> prompts = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    >>> out = ranked_pairs(table, prompts, lambda users, ids: 100.0 * ids, np.random.default_rng(0))
    >>> out.chosen[0].tolist(), out.rejected[0].tolist()
    ([[0, 1], [7, 7]], [[4, 5], [2, 2]])
    """
    chosen, rejected = (np.array(side) for side in (table.chosen, table.rejected))
    mask = np.asarray(table.mask)[:, 1]
    listed, real = _responses(prompts, texts_of(table))
    step = max(_TEXTS // max(chosen.shape[2] * listed.shape[1], 1), 1)
    for start in range(0, len(chosen), step):
        users = np.arange(start, min(start + step, len(chosen)))
        asked = prompts[chosen[users, 1]]  # (users, rows)
        several = mask[users] & (real[asked].sum(-1) > 1) & (asked == prompts[rejected[users, 1]])
        ids = listed[asked]  # (users, rows, responses)
        worth = rewards(users, ids.reshape(len(users), -1)).reshape(ids.shape)
        best, least = (_draw(side * worth, real[asked], rng) for side in (1, -1))
        same = best == least
        best = np.where(same, np.where(real[asked], worth, -np.inf).argmax(-1), best)
        others = real[asked] & (np.arange(ids.shape[-1]) != best[..., None])  # also where all rewards are equal
        least = np.where(same, np.where(others, worth, np.inf).argmin(-1), least)
        for side, places in ((chosen, best), (rejected, least)):
            drawn = np.take_along_axis(ids, places[..., None], -1)[..., 0]
            side[users, 1] = np.where(several, drawn, side[users, 1])
    return ChoiceTable(chosen, rejected, np.asarray(table.count), np.asarray(table.group), weight=table.weight)


def _responses(prompts: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (prompts, most responses) of the given texts by prompt, and which of them are real."""
    texts = texts[np.argsort(prompts[texts], kind="stable")]
    number = np.bincount(prompts[texts], minlength=int(prompts.max(initial=-1)) + 1)
    real = np.arange(number.max(initial=0)) < number[:, None]
    ids = np.zeros(real.shape, int)
    ids[real] = texts
    return ids, real


def _draw(logits: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Places along the last axis, drawn with probability ∝ exp(logit) among the real ones."""
    return np.where(real, logits + rng.gumbel(size=logits.shape), -np.inf).argmax(-1)
