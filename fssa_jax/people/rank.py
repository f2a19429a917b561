"""Ranks given responses for a person, from their choices."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from fssa_jax.data.features import Text
from fssa_jax.errors import UserError, printable
from fssa_jax.lm.messages import messages_of, readable
from fssa_jax.people.choices import Choice
from fssa_jax.people.person import PersonModel
from fssa_jax.types import Posterior

_LINES = "\n\t"  # control characters that a terminal may obey


@dataclasses.dataclass
class Ranking:
    """Responses to one prompt, scored for one person.

    `rewards` and `probabilities` are (2, n): after none and after all of the person's choices; with a trace (k + 1, n):
    after none, one, … all k. A probability is
    that of being chosen among all n responses, softmax(r), averaged over z, with the model's share ε of choices at
    random: (1 − ε) p + ε / n.
    """

    prompt: str
    responses: list[str]
    rewards: np.ndarray
    probabilities: np.ndarray

    @property
    def order(self) -> list[int]:
        """Indices of the responses, from best to worst after all choices."""
        return np.argsort(-self.probabilities[-1], kind="stable").tolist()


def rank(
    person: PersonModel, choices: Sequence[Choice], responses: Sequence[Text], trace: bool = False
) -> list[Ranking]:
    """Scores responses for the person who made the choices, one `Ranking` per prompt.

    The latents are inferred in one forward pass; nothing is trained.

    Args:
      person: a trained model.
      choices: of the person; see `PersonModel.infer`.
      responses: (prompt, response) pairs.
      trace: also score after every number of choices in between.

    Raises:
      UserError: see `PersonModel.infer`.
    """
    if not responses:
        raise UserError("no responses to rank; give one or more")
    choices = person.checked(choices)
    read = range(len(choices) + 1) if trace else (0, len(choices))
    latents = person.infer_people([choices[:j] for j in read])
    rewards = person.sampled_rewards(latents, responses)
    weights = person.weights(latents)
    known = latents.lapse if isinstance(latents, Posterior) else None
    lapse = np.zeros((len(latents.mean), 1)) if known is None else np.asarray(known)[:, None]

    def average(values: np.ndarray) -> np.ndarray:
        return np.einsum("sk,skn->kn", weights, values)

    rankings = []
    for prompt in dict.fromkeys(prompt for prompt, _ in responses):
        index = [i for i, (p, _) in enumerate(responses) if p == prompt]
        r = rewards[:, :, index]
        probabilities = np.exp(r - r.max(-1, keepdims=True))
        probabilities = average(probabilities / probabilities.sum(-1, keepdims=True))
        probabilities = (1 - lapse) * probabilities + lapse / len(index)
        rankings.append(Ranking(prompt, [responses[i][1] for i in index], average(r), probabilities))
    return rankings


def format_ranking(ranking: Ranking, trace: bool = False, width: int = 72) -> str:
    """A text table, best response first, with its change of place since before the first choice."""
    before = np.argsort(np.argsort(-ranking.probabilities[0], kind="stable"), kind="stable")
    lines = [f"{printable(readable(ranking.prompt), keep=_LINES) or '(no prompt)'}"]
    for place, i in enumerate(ranking.order):
        moved = int(before[i]) - place
        arrow = f"↑{moved}" if moved > 0 else f"↓{-moved}" if moved < 0 else "="
        text = printable(" ".join(ranking.responses[i].split()))
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        lines.append(f"  {place + 1:2d}. {ranking.probabilities[-1, i]:6.1%}  {arrow:>3}  {text}")
    if trace:
        lines.append("  probability of being preferred, after each choice:")
        lines.append("    choices " + "".join(f"{k:>7d}" for k in range(len(ranking.probabilities))))
        for place, i in enumerate(ranking.order):
            row = "".join(f"{p:7.1%}" for p in ranking.probabilities[:, i])
            lines.append(f"    no. {place + 1:2d}  {row}")
    return "\n".join(lines)


def format_rankings(number: int, rankings: list[Ranking], trace: bool, as_json: bool) -> str:
    """All rankings, as tables or as one JSON object per line."""
    if not as_json:
        head = f"After {number} choices (arrows: places moved since before the first):"
        return "\n".join([head, *(format_ranking(ranking, trace) for ranking in rankings)])
    records = (
        {
            "prompt": ranking.prompt if len(messages_of(ranking.prompt)) == 1 else messages_of(ranking.prompt),
            "responses": [ranking.responses[i] for i in ranking.order],
            "rewards": [float(ranking.rewards[-1, i]) for i in ranking.order],
            "probabilities": [float(ranking.probabilities[-1, i]) for i in ranking.order],
        }
        for ranking in rankings
    )
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
