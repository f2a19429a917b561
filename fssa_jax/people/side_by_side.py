"""Responses side by side: before and after a person's choices, for several people, and for mixtures of two."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fssa_jax.errors import UserError, printable
from fssa_jax.lm.messages import messages_of, readable
from fssa_jax.lm.writer import check_room
from fssa_jax.people.blend import blend
from fssa_jax.people.choices import Choice, as_prompt
from fssa_jax.people.person import PersonPolicy
from fssa_jax.types import DiagGaussian


@dataclasses.dataclass
class Written:
    """A response and the name of the person it was written for.

    `share` is the weight of the second person in a mixture, `ranked` all (response, reward) that it is the best of.
    """

    name: str
    text: str
    share: float | None = None
    ranked: list[tuple[str, float]] = dataclasses.field(default_factory=list)


def write_for(
    policy: PersonPolicy,
    prompts: Sequence[Any],
    people: Mapping[str, Sequence[Choice]],
    *,
    shares: Sequence[float] = (),
    counted: bool = False,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    number: int = 1,
    strength: float | None = None,
) -> list[list[Written]]:
    """Per prompt: a response before any choice and one per person; or, with `shares`, one per mixture of two people.

    Args:
      policy: generates the responses.
      prompts: prompts to answer, each a text or a list of messages.
      people: name ↦ choices.
      counted: label people by the number of their choices instead of their names.
      shares: weights of the second of two people, one per mixture.
      sampling: settings of `Generation` that differ from the policy's evaluation.
      seed: of generation.
      number: responses are the best of so many under the person's reward model.
      strength: of the adapters; see `PersonPolicy.adapt`.

    Raises:
      UserError: a prompt that does not fit, or invalid choices; the message names the person.
    """
    settings = dataclasses.replace(policy.task.config.evaluate.generate, **(sampling or {}))
    asked = [as_prompt(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    check_room(policy.task.base, asked, settings.max_new)  # all of them before answering any
    latents = {name: _inferred(policy, name, choices) for name, choices in people.items()}
    named: list[tuple[str, DiagGaussian, float | None]] = [("before any choice", policy.infer([]), None)]
    if shares:
        (first, a), (second, b) = latents.items()
        named = [(f"{1 - t:g} · {first} + {t:g} · {second}", blend([a, b], (1 - t, t)), t) for t in shares]
    else:
        labels = {name: f"after {len(choices)} choices" if counted else name for name, choices in people.items()}
        named += [(labels[name], latent, None) for name, latent in latents.items()]
    out = []
    for prompt in prompts:
        written = []
        for name, latent, share in named:
            if number > 1:
                [ranked] = policy.best_of(latent, [prompt], number, seed=seed, settings=settings, strength=strength)
                written.append(Written(name, ranked[0][0], share, ranked))
                continue
            text = policy.generate(policy.adapt(latent, strength), [prompt], seed=seed, settings=settings)[0]
            written.append(Written(name, text, share))
        out.append(written)
    return out


def check_shares(shares: Sequence[float], people: int) -> None:
    """Raises `UserError` for --blend of other than two people, or of weights outside [0, 1]."""
    if shares and people != 2:
        raise UserError(f"--blend: mixtures of two people need two files in --people, got {people}")
    if outside := [t for t in shares if not 0 <= t <= 1]:
        raise UserError(f"--blend: {outside[0]:g} is no share of the second person; give numbers from 0 to 1")


def _inferred(policy: PersonPolicy, name: str, choices: Sequence[Choice]) -> DiagGaussian:
    try:
        return policy.infer(choices)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def format_written(prompts: Sequence[Any], written: list[list[Written]], as_json: bool) -> str:
    """All responses as text, or one JSON object per prompt: {"prompt", "responses": [{"for", "share", "text"}, …]}.

    Of the best of several, all are listed: {…, "ranked": [{"text", "reward"}, …]}.
    """
    lines = []
    for i, (given, responses) in enumerate(zip(prompts, written, strict=True)):
        prompt = as_prompt(given, f"prompt {i}")
        if as_json:
            said = [_as_json(response) for response in responses]
            messages = messages_of(prompt)
            shown = prompt if len(messages) == 1 else messages
            lines.append(json.dumps({"prompt": shown, "responses": said}, ensure_ascii=False))
        else:
            lines += [readable(prompt), *map(_as_text, responses)]
    return "\n".join(lines if as_json else (printable(line, keep="\n\t") for line in lines))


def _as_json(response: Written) -> dict[str, Any]:
    out: dict[str, Any] = {"for": response.name, "share": response.share, "text": response.text}
    if response.ranked:
        out["ranked"] = [{"text": text, "reward": round(reward, 4)} for text, reward in response.ranked]
    return out


def _as_text(response: Written) -> str:
    if not response.ranked:
        return f"  {response.name}:\n    {response.text}"
    rewards = [reward for _, reward in response.ranked]
    among = f"best of {len(rewards)} that differ, reward {rewards[0]:+.2f}, the others down to {rewards[-1]:+.2f}"
    return f"  {response.name} ({among}):\n    {response.text}"
