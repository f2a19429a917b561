"""Responses side by side: before and after a person's choices, for several people, and for mixtures of two."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fssa_jax.errors import UserError, printable
from fssa_jax.lm.messages import messages_of, readable
from fssa_jax.people.blend import blend
from fssa_jax.people.choices import Choice, as_prompt
from fssa_jax.people.person import PersonPolicy
from fssa_jax.types import DiagGaussian


@dataclasses.dataclass
class Written:
    """A response and the name of the person it was written for."""

    name: str
    text: str
    share: float | None = None  # weight of the second person in a mixture


def write_for(
    policy: PersonPolicy,
    prompts: Sequence[str],
    people: Mapping[str, Sequence[Choice]],
    *,
    shares: Sequence[float] = (),
    counted: bool = False,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[list[Written]]:
    """Per prompt: a response before any choice and one per person; or, with `shares`, one per mixture of two people.

    Args:
      policy: generates the responses.
      prompts: prompts to answer.
      people: name ↦ choices.
      counted: label people by the number of their choices instead of their names.
      shares: weights of the second of two people, one per mixture.
      sampling: settings of `Generation` that differ from the policy's evaluation.
      seed: of generation.

    Raises:
      UserError: a prompt that does not fit, or invalid choices; the message names the person.
    """
    settings = dataclasses.replace(policy.task.config.evaluate.generate, **(sampling or {}))
    base, prompts = policy.task.base, [as_prompt(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    positions = base.decoder.config.max_length
    for prompt in prompts:  # check all prompts before answering any
        number = len(base.tokenizer.prompt(prompt).tokens)
        if number + settings.max_new > positions:
            raise UserError(
                f"--prompt={prompt[:30]!r}: {number} tokens and --max_new={settings.max_new} do not fit into the "
                f"{positions} positions of the model; shorten it or lower --max_new"
            )
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
            text = policy.generate(policy.adapt(latent), [prompt], seed=seed, settings=settings)[0]
            written.append(Written(name, text, share))
        out.append(written)
    return out


def _inferred(policy: PersonPolicy, name: str, choices: Sequence[Choice]) -> DiagGaussian:
    try:
        return policy.infer(choices)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def format_written(prompts: Sequence[str], written: list[list[Written]], as_json: bool) -> str:
    """All responses as text, or one JSON object per prompt: {"prompt", "responses": [{"for", "share", "text"}, …]}."""
    lines = []
    for prompt, responses in zip(prompts, written, strict=True):
        if as_json:
            said = [{"for": response.name, "share": response.share, "text": response.text} for response in responses]
            messages = messages_of(prompt)
            shown = prompt if len(messages) == 1 else messages
            lines.append(json.dumps({"prompt": shown, "responses": said}, ensure_ascii=False))
        else:
            lines += [readable(prompt), *(f"  {response.name}:\n    {response.text}" for response in responses)]
    return "\n".join(lines if as_json else (printable(line, keep="\n\t") for line in lines))
