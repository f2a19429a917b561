"""The in-context baseline, without training: the person's choices are put into the prompt of the base."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.data.features import Text
from fssa_jax.lm.scoring import Texts, log_probs_of
from fssa_jax.lm.tokenizer import Encoded, encode
from fssa_jax.ops.padding import bucket
from fssa_jax.tasks.policy import PolicyTask
from fssa_jax.tasks.predictor import Predictor, no_latent
from fssa_jax.types import DiagGaussian, Episode
from fssa_jax.watchdog import finished

_BATCH_TOKENS = 32_768


def in_context_prompt(prompt: str, choices: Sequence[tuple[str, str, str]]) -> str:
    """A prompt, preceded by a person's choices (prompt, chosen, rejected)."""
    if not choices:
        return prompt
    shown = "\n\n".join(f"Question: {p}\nPreferred answer: {a}\nOther answer: {b}" for p, a, b in choices)
    return f"{shown}\n\nQuestion: {prompt}\nPreferred answer:"


def in_context_predictor(task: PolicyTask) -> Predictor:
    """log σ(β [Δ log π(· | choices, x) − Δ log π(· | x)]) of the base.

    If choices and prompt do not fit into the positions of the model, the first choices are left out.
    """
    base, texts, objective = task.base, task.dataset.texts, task.config.objective
    lengths = task.tokens.ends - task.tokens.starts
    limit = base.decoder.config.max_length
    references: dict[bytes, np.ndarray] = {}  # without choices, so the same for every k

    def log_probs(rows: list[tuple[Text, list[tuple[str, str, str]]]]) -> np.ndarray:
        encoded = []
        for (prompt, response), choices in rows:
            row = encode(base.tokenizer, in_context_prompt(prompt, choices), response)
            while len(row.tokens) > limit and choices:
                choices = choices[1:]
                row = encode(base.tokenizer, in_context_prompt(prompt, choices), response)
            if len(row.tokens) > limit:  # keep the end of the prompt, and the response
                over = min(len(row.tokens) - limit, row.start - 1)
                row = Encoded(row.tokens[over:][:limit], row.start - over, min(row.end - over, limit))
            encoded.append(row)
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
            filled = Texts(*(jnp.asarray(x) for x in (tokens, starts, ends)))
            scored = log_probs_of(base.decoder, base.variables, filled, jnp.arange(number))
            out.append(np.asarray(scored)[: len(part)])
            finished()
        return np.concatenate(out)

    def score(q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
        del q  # the choices themselves are read
        context, targets = episodes.context, episodes.targets
        users, number = targets.mask.shape
        pairs = np.stack([np.asarray(targets.chosen), np.asarray(targets.rejected)], -1).reshape(users, -1)
        choices = [
            [(texts[a][0], texts[a][1], texts[b][1]) for a, b, real in zip(*rows, strict=True) if real]
            for rows in zip(*(np.asarray(x) for x in (context.chosen, context.rejected, context.mask)), strict=True)
        ]
        real = np.repeat(np.asarray(targets.mask), 2, axis=1)
        place = [(u, i) for u in range(users) for i in np.flatnonzero(real[u])]

        def scored(shown: Sequence[list[tuple[str, str, str]]]) -> np.ndarray:
            values = np.zeros(pairs.shape, np.float32)
            values[real] = log_probs([(texts[pairs[u, i]], shown[u]) for u, i in place])
            return values / np.maximum(lengths[pairs], 1) if objective.length_normalised else values

        ratio = np.zeros(pairs.shape, np.float32)
        if any(choices):
            targets_key = pairs.tobytes() + real.tobytes()
            if targets_key not in references:
                references[targets_key] = scored([[]] * users)
            ratio = scored(choices) - references[targets_key]
        ratio = ratio.reshape(users, number, 2)
        return {"log_p": np.asarray(jax.nn.log_sigmoid(objective.beta * (ratio[..., 0] - ratio[..., 1])))}

    return Predictor(no_latent, score, reads=True)
