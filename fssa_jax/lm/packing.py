"""Several responses to one prompt in one row: what the model computes of the prompt is computed once for all of them.

A row is the prompt without its last token, and then, for every response, that last token and the response. Tokens keep
the positions that they have in their own text, and see the prompt and their own response only, so a row gives the
states of its texts. With a prompt of p tokens and n responses of r tokens each, n (p + r) tokens become p + n r.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fssa_jax.lm.texts import Texts


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of packed texts.

    Attributes:
      tokens: (rows, width).
      positions: (rows, width) of the tokens in their own texts.
      segments: (rows, width) 0 for the shared prompt, i + 1 for the rest of the i-th text.
      scored: (rows, width) which tokens are of a response; the token before is the one that predicts it.
      states: (rows, width, d) as in `Texts`; None for none.
    """

    tokens: Int[Array, "rows width"]
    positions: Int[Array, "rows width"]
    segments: Int[Array, "rows width"]
    scored: Bool[Array, "rows width"]
    states: Float[Array, "rows width d"] | None


def number_prompts(tokens: np.ndarray, starts: np.ndarray) -> Int[np.ndarray, " texts"]:
    """A number per text, the same for texts whose tokens before the response are the same.

    >>> import numpy as np
    >>> from fssa_jax.lm.packing import number_prompts
    >>> number_prompts(np.array([[5, 6, 9], [5, 6, 8], [5, 7, 9]]), np.array([2, 2, 2])).tolist()
    [0, 0, 1]
    """
    known: dict[bytes, int] = {}
    each = (np.ascontiguousarray(row[:start]).tobytes() for row, start in zip(tokens, starts, strict=True))
    return np.array([known.setdefault(prompt, len(known)) for prompt in each], np.int32)


def shared_lengths(texts: Texts, ids: Int[Array, "*rows n"]) -> Int[Array, "*rows"]:
    """Number of tokens that the texts of a row share: their prompt but its last token; 0 if their prompts differ."""
    prompts = texts.prompts[ids]
    same = (prompts == prompts[..., :1]).all(-1)
    return jnp.where(same, jnp.maximum(texts.starts[ids[..., 0]] - 1, 0), 0)


def packed_lengths(texts: Texts, ids: Int[Array, "*rows n"]) -> Int[Array, "*rows"]:
    """Number of tokens of the rows into which these texts are packed. A single text keeps its length."""
    if ids.shape[-1] == 1:
        return texts.ends[ids[..., 0]]
    shared = shared_lengths(texts, ids)
    return shared + (texts.ends[ids] - shared[..., None]).sum(-1)


def pack(texts: Texts, ids: Int[Array, "rows n"], width: int) -> Packed:
    """The rows of these texts, n per row, padded to `width` tokens; what does not fit is lost (`packed_lengths`)."""
    shared = shared_lengths(texts, ids)[:, None]
    bounds = shared + jnp.cumsum(texts.ends[ids] - shared, axis=1)  # one past the last token of every text
    begins = jnp.concatenate([shared, bounds[:, :-1]], axis=1)
    place = jnp.broadcast_to(jnp.arange(width)[None], (len(ids), width))
    segments = (place[:, :, None] >= begins[:, None, :]).sum(-1)
    number = jnp.maximum(segments - 1, 0)
    positions = place - jnp.where(segments > 0, jnp.take_along_axis(begins - shared, number, 1), 0)
    positions = jnp.minimum(positions, texts.tokens.shape[1] - 1)  # of padding
    text = jnp.take_along_axis(ids, number, 1)
    real = (segments > 0) & (place < bounds[:, -1:])
    first = jnp.maximum(texts.starts[text], 1)  # no token is before the first of a text
    scored = real & (positions >= first) & (positions < texts.ends[text])
    states = None if texts.states is None else texts.states[text, positions]
    return Packed(texts.tokens[text, positions], positions, segments, scored, states)
