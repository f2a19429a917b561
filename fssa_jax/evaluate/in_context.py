"""The in-context baseline, without training: the person's choices are put into the prompt of the base."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fssa_jax.data.features import Text
from fssa_jax.lm.messages import readable
from fssa_jax.lm.scoring import log_probs_of
from fssa_jax.lm.texts import Texts
from fssa_jax.ops.choices import per_choice, real_responses, responses_of
from fssa_jax.ops.likelihoods import choice_log_likelihood
from fssa_jax.ops.padding import bucket
from fssa_jax.progress import finished
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.predictor import Predictor, no_latent
from fssa_jax.types import Comparisons, DiagGaussian, Episode

_BATCH_TOKENS = 32_768


def in_context_prompt(prompt: str, choices: Sequence[tuple[str, ...]]) -> str:
    """A prompt, preceded by a person's choices (prompt, chosen, rejected, others …)."""
    if not choices:
        return prompt
    shown = []
    for asked, chosen, *others in choices:
        answers = [f"Preferred answer: {chosen}", *(f"Other answer: {other}" for other in others)]
        shown.append("\n".join([f"Question: {readable(asked)}", *answers]))
    return "\n\n".join([*shown, f"Question: {readable(prompt)}\nPreferred answer:"])


def in_context_predictor(task: PolicyTask) -> Predictor:
    """log σ(β [Δ log π(· | choices, x) − Δ log π(· | x)]) of the base.

    If choices and prompt do not fit into the positions of the model, the first choices are left out.
    """
    base, texts, objective = task.base, task.dataset.texts, task.config.objective
    lengths = task.tokens.ends - task.tokens.starts
    limit = base.decoder.config.max_length
    references: dict[bytes, np.ndarray] = {}  # without choices, so the same for every k

    def log_probs(rows: list[tuple[Text, list[tuple[str, ...]]]]) -> np.ndarray:
        encoded = []
        for (prompt, response), choices in rows:
            row = base.tokenizer.encode(in_context_prompt(prompt, choices), response)
            while len(row.tokens) > limit and choices:
                choices = choices[1:]
                row = base.tokenizer.encode(in_context_prompt(prompt, choices), response)
            encoded.append(row.cut(limit))
        width = min(bucket(max(len(row.tokens) for row in encoded)), limit)
        number = max(_BATCH_TOKENS // width, 1)
        out = []
        for start in range(0, len(encoded), number):
            part = encoded[start : start + number]
            tokens = np.zeros((number, width), np.int32)
            starts, ends = np.ones((2, number), np.int32)
            for i, row in enumerate(part):
                tokens[i, : len(row.tokens)] = row.tokens
                starts[i], ends[i] = row.start, row.end
            filled = Texts(jnp.asarray(tokens), jnp.asarray(starts), jnp.asarray(ends))
            scored = log_probs_of(base.decoder, base.variables, filled, jnp.arange(number))
            out.append(np.asarray(scored)[: len(part)])
            finished()
        return np.concatenate(out)

    def score(q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
        del q  # the choices themselves are read
        context, targets = episodes.context, episodes.targets
        users, number = targets.mask.shape
        ids, listed = _offered(targets)
        pairs = ids.reshape(users, -1)
        read, there = _offered(context)
        choices = [
            [
                (texts[row[0]][0], *(texts[t][1] for t, here in zip(row, real, strict=True) if here and texts[t][1]))
                for row, real in zip(*of_user, strict=True)
                if real[0] and texts[row[0]][1]  # what is only disliked has no preferred answer to show
            ]
            for of_user in zip(read, there, strict=True)
        ]
        real = listed.reshape(users, -1)
        place = [(u, i) for u in range(users) for i in np.flatnonzero(real[u])]

        def scored(shown: Sequence[list[tuple[str, ...]]]) -> np.ndarray:
            values = np.zeros(pairs.shape, np.float32)
            values[real] = log_probs([(texts[pairs[u, i]], shown[u]) for u, i in place])
            return values / np.maximum(lengths[pairs], 1) if objective.length_normalised else values

        ratio = np.zeros(pairs.shape, np.float32)
        if any(choices):
            targets_key = pairs.tobytes() + real.tobytes()
            if targets_key not in references:
                references[targets_key] = scored([[]] * users)
            ratio = scored(choices) - references[targets_key]
        ratio = ratio.reshape(users, number, -1)
        margins = objective.beta * (ratio[..., :1] - ratio[..., 1:])
        if targets.others is None:
            return {"log_p": np.asarray(choice_log_likelihood(margins))}
        # Of padding the first response is taken, so that no row is without any.
        there = listed[..., 1:] | (np.arange(margins.shape[-1]) == 0)
        log_p = np.asarray(choice_log_likelihood(margins, there))
        return {"log_p": log_p, "log_best_other": log_p - np.where(there, margins, np.inf).min(-1)}

    return Predictor(no_latent, score, reads=True)


def _offered(choices: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the responses of every choice, (users, n, 2 + a), the chosen one first; and which are real."""
    ids, real = per_choice(responses_of(choices), choices), choices.mask[..., None]
    return np.asarray(ids), np.asarray(real_responses(choices) & real)
