"""Rank given responses for the maker of some choices."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.data.build import texts_in
from fssa_jax.data.dataset import extended, number_texts, seen_in_training
from fssa_jax.data.features import Text
from fssa_jax.data.rows import Row, read_records, read_rows
from fssa_jax.errors import UserError
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.models.rewards import RewardModel
from fssa_jax.ops.distributions import antithetic_noise, gaussian_sample
from fssa_jax.types import Comparisons, DiagGaussian

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Ranking:
    """Responses to one prompt, scored for one person.

    `rewards` and `probabilities` are (k + 1, n): after none, one, … all k of the person's choices. A
    probability is that of being chosen from all n responses, softmax(r), averaged over z.
    """

    prompt: str
    responses: list[str]
    rewards: np.ndarray
    probabilities: np.ndarray

    @property
    def order(self) -> list[int]:
        """Responses from best to worst after all choices."""
        return np.argsort(-self.probabilities[-1], kind="stable").tolist()


def read_choices(path: str) -> list[Row]:
    """The choices of one person, in the file's order, repeated ones once; `user_id` may be left out.

    Raises:
      UserError: bad rows, no rows, or several people.
    """
    rows, _ = read_rows(path, person="you")
    people = sorted({row.user for row in rows})
    if len(people) > 1:
        raise UserError(f"{path}: choices of {len(people)} people ({people[0]}, {people[1]} …); give one person's")
    return rows


def read_responses(path: str) -> list[Text]:
    """(prompt, response) of rows with these two columns, in any format of `read_rows`, each once.

    Raises:
      UserError: a row that lacks one, or no rows at all.
    """
    texts: list[Text] = []
    for place, record in read_records(path, ("prompt", "response")):
        if not (isinstance(record, dict) and all(isinstance(record.get(n), str) for n in ("prompt", "response"))):
            raise UserError(f"{place}: needs texts in columns 'prompt' and 'response'; fill them in")
        if not record["response"].strip():
            raise UserError(f"{place}: column 'response' is empty; remove the row or fill it in")
        texts.append((record["prompt"], record["response"]))
    if not texts:
        raise UserError(f"{path}: no responses to rank; write rows of prompt, response")
    return list(dict.fromkeys(texts))


def rank(work: Workdir, choices: list[Row], responses: list[Text]) -> list[Ranking]:
    """Scores responses for the maker of the choices, one `Ranking` a prompt.

    One forward pass of the encoder for each number of choices; nothing is trained.
    """
    trained = work.trained()
    assert trained is not None
    if trained.model.latent == "none":
        raise UserError(f"{work.path}: a {work.config.model.kind} model does not read choices; train np_btl")
    if trained.model.likelihood != "btl":
        raise UserError(f"{work.path}: ranking needs BTL rewards")
    model, variables = trained.model, trained.variables

    texts = [*texts_in(choices), *responses]
    number = number_texts(texts, work.dataset.texts)
    ids = jnp.asarray([number[text] for text in texts])
    features = jnp.asarray(extended(work.dataset, number)[1])
    _warn_of_unknown_texts(work, trained.model, choices, responses)
    n = len(choices)
    chosen, rejected = ids[0 : 2 * n : 2], ids[1 : 2 * n : 2]
    # Row j of the batch is the person after j choices.
    shape = (n + 1, n)
    mask = jnp.arange(n)[None] < jnp.arange(n + 1)[:, None]
    context = Comparisons(jnp.broadcast_to(chosen[None], shape), jnp.broadcast_to(rejected[None], shape), mask)
    samples = work.config.evaluate.samples
    asked = jnp.broadcast_to(ids[2 * n :][None], (n + 1, len(responses)))
    rewards = _score(model, variables, features, context, asked, samples)

    rankings = []
    for prompt in dict.fromkeys(prompt for prompt, _ in responses):
        index = [i for i, (p, _) in enumerate(responses) if p == prompt]
        r = rewards[:, :, index]
        probabilities = np.exp(r - r.max(-1, keepdims=True))
        probabilities = (probabilities / probabilities.sum(-1, keepdims=True)).mean(0)
        rankings.append(Ranking(prompt, [responses[i][1] for i in index], r.mean(0), probabilities))
    return rankings


def _warn_of_unknown_texts(work: Workdir, model: RewardModel, choices: list[Row], responses: list[Text]) -> None:
    """Says so where the model knows a person's taste in texts that training rows judge, and no others."""
    if not model.learnt_texts or model.target != "none":
        return
    seen = seen_in_training(work.dataset)
    known = {text for text, judged in zip(work.dataset.texts, seen, strict=False) if judged}
    said = list(texts_in(choices))
    for what, texts, effect in (
        ("chosen or rejected texts", said, "what they say about the person is lost"),
        ("responses", responses, "they are ranked by their general appeal alone"),
    ):
        new = sum(text not in known for text in texts)
        if new:
            _log.warning(
                "%d of %d %s were never judged in training: %s; for new texts train with --config.model.learn_texts=no",
                new,
                len(texts),
                what,
                effect,
            )


def _score(model, variables, features, context: Comparisons, responses: jax.Array, samples: int) -> np.ndarray:
    """Rewards (samples, k + 1, n)."""

    def apply(module, context, responses):
        q: DiagGaussian = module.infer(context, features)
        z = q.mean[None]
        if module.sampled:
            noise = antithetic_noise(jax.random.key(0), samples, q.mean.shape[-1])[:, None]
            z = gaussian_sample(q, jnp.broadcast_to(noise, (samples, *q.mean.shape)))
        return module.rewards(responses, z, features)[..., 0]

    return np.asarray(jax.jit(lambda v, c, r: model.apply(v, c, r, method=apply))(variables, context, responses))


def format_ranking(ranking: Ranking, trace: bool = False, width: int = 72) -> str:
    """A table for people: best first, with the place that the response had before any choice."""
    before = np.argsort(np.argsort(-ranking.probabilities[0], kind="stable"), kind="stable")
    lines = [f"{ranking.prompt or '(no prompt)'}"]
    for place, i in enumerate(ranking.order):
        moved = int(before[i]) - place
        arrow = f"↑{moved}" if moved > 0 else f"↓{-moved}" if moved < 0 else "="
        text = " ".join(ranking.responses[i].split())
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        lines.append(f"  {place + 1:2d}. {ranking.probabilities[-1, i]:6.1%}  {arrow:>3}  {text}")
    if trace:
        lines.append("  probability of being preferred, after each choice:")
        lines.append("    choices " + "".join(f"{k:>7d}" for k in range(len(ranking.probabilities))))
        for place, i in enumerate(ranking.order):
            row = "".join(f"{p:7.1%}" for p in ranking.probabilities[:, i])
            lines.append(f"    no. {place + 1:2d}  {row}")
    return "\n".join(lines)


def format_rankings(rows: list[Row], rankings: list[Ranking], trace: bool, as_json: bool) -> str:
    """All rankings, as tables or as one JSON object a line."""
    if not as_json:
        head = f"After {len(rows)} choices (arrows: places moved since before the first):"
        return "\n".join([head, *(format_ranking(ranking, trace) for ranking in rankings)])
    records = (
        {
            "prompt": ranking.prompt,
            "responses": [ranking.responses[i] for i in ranking.order],
            "rewards": [float(ranking.rewards[-1, i]) for i in ranking.order],
            "probabilities": [float(ranking.probabilities[-1, i]) for i in ranking.order],
        }
        for ranking in rankings
    )
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def steer(workdir: Path, choices: str, responses: str) -> tuple[list[Row], list[Ranking]]:
    """The program's body: reads both files and ranks."""
    rows = read_choices(choices)
    texts = read_responses(responses)
    return rows, rank(Workdir.open(workdir), rows, texts)
