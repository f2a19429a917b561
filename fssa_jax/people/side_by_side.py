"""Responses side by side: before and after a person's choices, of several people, and on the way between two."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.lm.tokenizer import prompt_tokens
from fssa_jax.people.person import Steerer, blended, choices_in
from fssa_jax.types import DiagGaussian


@dataclasses.dataclass
class Written:
    """A response and for whom it was written."""

    name: str
    text: str
    share: float | None = None  # of the second person, between two


def write_for(
    workdir: Path,
    prompts: Sequence[str],
    *,
    choices: str = "",
    people: Sequence[str] = (),
    blend: Sequence[float] = (),
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    base: str = "",
) -> list[list[Written]]:
    """For each prompt: responses before and after a person's choices; or of people, and on the way between two.

    Args:
      workdir: of a policy.
      choices: file of one person's choices.
      people: files of choices, one a person.
      blend: shares of the second of two people, for responses between them.
      sampling: settings of a `GenerateConfig` that differ from those that the policy is evaluated with.
      seed: of generation.
      base: where the language model is now, if that has moved.

    Raises:
      UserError: bad files, a blend of other than two people, or a share that is not from 0 to 1.
    """
    files = list(people) or [choices]
    if not all(file.strip() for file in files):
        raise UserError("--people: a name is empty; leave out the comma")
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("--prompt: empty; give what is to be answered")
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"--prompt: not UTF-8 at character {error.start}; save it as UTF-8") from error
    if blend and len(files) != 2:
        raise UserError(f"--blend: shares between two people need two files in --people, got {len(files)}")
    if outside := [t for t in blend if not 0 <= t <= 1]:
        raise UserError(f"--blend: {outside[0]:g} is no share of the second person; give numbers from 0 to 1")
    sampling = sampling or {}
    if not math.isfinite(sampling.get("temperature", 0.0)):
        raise UserError(f"--temperature: must be a number from 0 up, got {sampling['temperature']}")
    rows = [choices_in(file) for file in files]
    steerer = Steerer.load(workdir, base)
    settings = dataclasses.replace(steerer.work.config.evaluate.generate, **sampling)
    positions = steerer.work.base.decoder.config.max_length
    for prompt in prompts:  # of all before any is answered
        number = len(prompt_tokens(steerer.work.base.tokenizer, prompt))
        if number + settings.max_new > positions:
            raise UserError(
                f"--prompt={prompt[:30]!r}: {number} tokens and --max_new={settings.max_new} do not fit into the "
                f"{positions} positions of the model; shorten it or lower --max_new"
            )
    latents = []
    for file, mine in zip(files, rows, strict=True):
        try:
            latents.append(steerer.infer(mine))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    named: list[tuple[str, DiagGaussian, float | None]] = [("before any choice", steerer.infer([]), None)]
    if blend:
        named = [(f"{1 - t:g} · {files[0]} + {t:g} · {files[1]}", blended(latents, (1 - t, t)), t) for t in blend]
    elif people:
        named += [(file, latent, None) for file, latent in zip(files, latents, strict=True)]
    else:
        named += [(f"after {len(rows[0])} choices", latents[0], None)]
    out = []
    for prompt in prompts:
        written = []
        for name, latent, share in named:
            text = steerer.generate(steerer.adapt(latent), [prompt], seed=seed, settings=settings)[0]
            written.append(Written(name, text, share))
        out.append(written)
    return out


def format_written(prompts: Sequence[str], written: list[list[Written]], as_json: bool) -> str:
    """All responses, as text or as one JSON object a prompt: {"prompt", "responses": [{"for", "share", "text"}, …]}."""
    lines = []
    for prompt, responses in zip(prompts, written, strict=True):
        if as_json:
            said = [{"for": response.name, "share": response.share, "text": response.text} for response in responses]
            lines.append(json.dumps({"prompt": prompt, "responses": said}, ensure_ascii=False))
        else:
            lines += [prompt, *(f"  {response.name}:\n    {response.text}" for response in responses)]
    return "\n".join(lines)
