"""The baseline without training: the person's choices are written into the prompt of the base."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.data.features import Text
from fssa_jax.evaluate.evaluate import Predictor
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.lm.tokenizer import Encoded, encode
from fssa_jax.ops.padding import bucket
from fssa_jax.tasks.policy import PolicyData, text_log_probs
from fssa_jax.types import Episode
from fssa_jax.watchdog import finished

_BATCH_TOKENS = 32_768


def in_context_prompt(prompt: str, choices: Sequence[tuple[str, str, str]]) -> str:
    """A prompt with (prompt, chosen, rejected) of a person before it."""
    if not choices:
        return prompt
    shown = "\n\n".join(f"Question: {p}\nPreferred answer: {a}\nOther answer: {b}" for p, a, b in choices)
    return f"{shown}\n\nQuestion: {prompt}\nPreferred answer:"


def in_context_predictor(work: PolicyWorkdir, data: PolicyData) -> Predictor:
    """log σ(β [Δ log π(· | choices, x) − Δ log π(· | x)]) of the base alone.

    Where choices and prompt do not fit into the positions of the model, the first choices are left out.
    """
    base, texts, objective = work.base, work.dataset.texts, work.config.objective
    lengths = work.tokens.ends - work.tokens.starts
    limit = base.decoder.config.max_length
    score = jax.jit(lambda data: text_log_probs(base.decoder, data.base, data, jnp.arange(len(data.ends))))

    def log_probs(rows: list[tuple[Text, list[tuple[str, str, str]]]]) -> np.ndarray:
        encoded = []
        for (prompt, response), choices in rows:
            row = encode(base.tokenizer, in_context_prompt(prompt, choices), response)
            while len(row.tokens) > limit and choices:
                choices = choices[1:]
                row = encode(base.tokenizer, in_context_prompt(prompt, choices), response)
            if len(row.tokens) > limit:  # the end of the prompt, and the response
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
            filled = PolicyData(*(jnp.asarray(x) for x in (tokens, starts, ends)), base=data.base)
            out.append(np.asarray(score(filled))[: len(part)])
            finished()
        return np.concatenate(out)

    def predict(episodes: Episode, ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        context, targets = episodes.context, episodes.targets
        users, number = targets.mask.shape
        pairs = np.stack([np.asarray(targets.chosen), np.asarray(targets.rejected)], -1).reshape(users, -1)
        choices = [
            [(texts[a][0], texts[a][1], texts[b][1]) for a, b, real in zip(*rows, strict=True) if real]
            for rows in zip(*(np.asarray(x) for x in (context.chosen, context.rejected, context.mask)), strict=True)
        ]
        real = np.repeat(np.asarray(targets.mask), 2, axis=1)
        place = [(u, i) for u in range(users) for i in np.flatnonzero(real[u])]

        def scored(k: int) -> np.ndarray:
            values = np.zeros(pairs.shape, np.float32)
            values[real] = log_probs([(texts[pairs[u, i]], choices[u][:k]) for u, i in place])
            return values / np.maximum(lengths[pairs], 1) if objective.length_normalised else values

        reference = scored(0)
        out = []
        for k in ks:
            ratio = ((scored(k) if k else reference) - reference).reshape(users, number, 2)
            out.append(np.asarray(jax.nn.log_sigmoid(objective.beta * (ratio[..., 0] - ratio[..., 1]))))
        nothing = np.zeros((users, 0))
        return np.stack(out), nothing, nothing

    return Predictor(predict, conditional=False)
