"""Log-probabilities of responses under a language model, with adapters per row."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fssa_jax.lm.base import Base
from fssa_jax.lm.packing import number_prompts, pack, packed_lengths
from fssa_jax.lm.texts import Texts
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.models.decoder import Decoder
from fssa_jax.ops.adapters import AdapterTree, adapter_rows, take_adapter_rows
from fssa_jax.ops.logprobs import response_log_probs, token_log_probs
from fssa_jax.ops.padding import Plan, batch_rows, best_plan, filled_rows, length_batches
from fssa_jax.progress import doing
from fssa_jax.types import PyTree

_BATCH_TOKENS = {"cpu": 8192}  # per device and call; other platforms:
_MANY_TOKENS = 65_536
# Logits of one chunk of tokens, 1 GiB in float32 on a GPU. It reads the output layer once per chunk, so large
# chunks are faster.
_CHUNK_LOGITS = {"cpu": 2**22, "gpu": 2**28}
_MANY_LOGITS = 2**25
_FEW_TOKENS, _FEW_SHAPES = 2**20, 3


def device_texts(table: TokenTable) -> Texts:
    """The token table on the device."""
    prompts = number_prompts(table.tokens, table.starts)
    return Texts(*map(jnp.asarray, (table.tokens, table.starts, table.ends)), prompts=jnp.asarray(prompts))


def text_log_probs(
    decoder: Decoder,
    variables: PyTree,
    texts: Texts,
    ids: Int[Array, "*rows"],
    adapters: AdapterTree | None = None,
    plan: Plan | None = None,
) -> Float[Array, "*rows"]:
    """log π(response | prompt) of texts, in nats.

    With a `plan` the rows are sorted by length and scored in groups, each padded to its own length; they must fit
    (`padding.fits`, `packed_lengths`). Without a plan all are padded to the longest that the token table allows.

    Args:
      decoder, variables: the language model.
      texts: the token table.
      ids: numbers of texts, (rows,); or (rows, n) for n texts per row, whose prompt is computed once if it is the same.
      adapters: one row per row of `ids`, or one per several consecutive rows.
      plan: how the rows are padded.
    """
    if plan is not None and len(plan) > 1:
        return _by_length(decoder, variables, texts, ids, adapters, plan)
    if ids.ndim == 2 and ids.shape[1] == 1:
        return text_log_probs(decoder, variables, texts, ids[:, 0], adapters, plan)[:, None]
    if ids.ndim == 2:
        return _packed(decoder, variables, texts, ids, adapters, plan)
    if plan is not None:
        texts = texts.narrowed(max(length for _, length in plan))
    hidden, kernel, settings = _outputs(decoder, variables, texts, ids, adapters)
    tokens = texts.tokens[ids]
    return response_log_probs(hidden, kernel, tokens, texts.starts[ids], texts.ends[ids], **settings)


def each_log_prob(
    decoder: Decoder, variables: PyTree, texts: Texts, ids: Int[Array, " n"], adapters: AdapterTree | None = None
) -> Float[Array, "n t"]:
    """log π(token | before) of every token of responses; place i is of token i + 1, and 0 where that is no response."""
    hidden, kernel, settings = _outputs(decoder, variables, texts, ids, adapters)
    tokens = texts.tokens[ids]
    place = jnp.arange(1, tokens.shape[1])[None]
    mask = (place >= texts.starts[ids][:, None]) & (place < texts.ends[ids][:, None])
    return token_log_probs(hidden[:, :-1], kernel, tokens[:, 1:], mask, **settings)


def _outputs(
    decoder: Decoder, variables: PyTree, texts: Texts, ids: Array, adapters: AdapterTree | None
) -> tuple[Array, Array, dict[str, Any]]:
    """The normed states of the tokens of texts, the output layer, and how logits are computed."""
    below = (
        {} if texts.states is None else {"start": texts.layers, "states": texts.states[ids, : texts.tokens.shape[1]]}
    )
    hidden: Any = decoder.apply(variables, texts.tokens[ids], adapters, **below, method="hidden")
    return hidden[0], *_output_layer(decoder, variables)


def _output_layer(decoder: Decoder, variables: PyTree) -> tuple[Array, dict[str, Any]]:
    """The output layer, and how logits are computed."""
    kernel: Any = decoder.apply(variables, method="output_kernel")
    budget = _CHUNK_LOGITS.get(jax.default_backend(), _MANY_LOGITS)
    chunk = min(max(budget // decoder.config.vocabulary // 256, 1) * 256, 8192)
    return kernel, {"chunk": chunk, "softcap": decoder.config.logit_softcap}


def _packed(
    decoder: Decoder, variables: PyTree, texts: Texts, ids: Array, adapters: AdapterTree | None, plan: Plan | None
) -> Float[Array, "rows n"]:
    number = ids.shape[1]
    width = number * texts.tokens.shape[1] if plan is None else plan[0][1]
    rows = pack(texts, ids, width)
    below = {} if rows.states is None else {"start": texts.layers, "states": rows.states}
    where = {"positions": rows.positions, "segments": rows.segments}
    hidden: Any = decoder.apply(variables, rows.tokens, adapters, **where, **below, method="hidden")
    kernel, settings = _output_layer(decoder, variables)
    log_p = token_log_probs(hidden[0][:, :-1], kernel, rows.tokens[:, 1:], rows.scored[:, 1:], **settings)
    mine = rows.segments[:, 1:, None] == jnp.arange(1, number + 1)[None, None]
    return jnp.where(mine, log_p[..., None], 0).sum(1)


def _by_length(
    decoder: Decoder, variables: PyTree, texts: Texts, ids: Array, adapters: AdapterTree | None, plan: Plan
) -> Float[Array, "*rows"]:
    order = jnp.argsort(-packed_lengths(texts, ids if ids.ndim == 2 else ids[:, None]))
    rows = None if adapters is None else adapter_rows(adapters)
    values, start = [], 0
    for number, width in plan:
        place = order[start : start + number]
        mine = adapters
        if adapters is not None and rows not in (None, 1):
            mine = take_adapter_rows(adapters, place // (len(ids) // rows))
        values.append(text_log_probs(decoder, variables, texts, ids[place], mine, ((number, width),)))
        start += number
    return jnp.zeros(ids.shape).at[order].set(jnp.concatenate(values), unique_indices=True)


def table_log_probs(
    base: Base,
    table: TokenTable,
    variables: PyTree = None,
    adapters: AdapterTree | None = None,
    below: Texts | None = None,
) -> np.ndarray:
    """(texts,) log π(response | prompt) in nats, 0 for texts without tokens; in batches of similar length.

    Args:
      base, table: the language model and the texts.
      variables: replace those of the base, for the same decoder.
      adapters: one row for all texts.
      below: the same texts with states, to run the layers above alone.
    """
    variables = base.variables if variables is None else variables
    out = np.zeros(len(table.lengths), np.float32)
    with doing("log-probabilities of texts", int((table.lengths > 0).sum()), "texts") as work:
        for rows, ids, size in _batches(table):
            if below is None:
                part, ids = _part(table, ids, size), np.arange(len(ids))
            else:
                part = below.narrowed(size)
            values = log_probs_of(base.decoder, variables, part, jnp.asarray(ids), adapters)
            out[rows] = np.asarray(values)[: len(rows)]
            work.add(len(rows))
    return out


def table_states(base: Base, table: TokenTable, layers: int) -> np.ndarray:
    """(texts, length, width) states after the first `layers` layers, in the type of the base; 0 where no token is."""
    out = np.zeros((*table.tokens.shape, base.decoder.config.width), base.decoder.dtype)
    with doing("states of texts", int((table.lengths > 0).sum()), "texts") as work:
        for rows, ids, size in _batches(table):
            part = _part(table, ids, size)
            states = np.asarray(_states_of(base.decoder, base.variables, part.tokens, layers))[: len(rows)]
            real = np.arange(states.shape[1])[None] < table.lengths[rows][:, None]
            out[rows, : states.shape[1]] = np.where(real[..., None], states, 0)
            work.add(len(rows))
    return out


def _part(table: TokenTable, ids: np.ndarray, size: int) -> Texts:
    """Texts of a table on the device, without the rest."""
    return Texts(table.tokens[ids, :size], table.starts[ids], table.ends[ids])


def _batches(table: TokenTable) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Numbers of texts with tokens, the same filled up to one of a few shapes, and how long they are padded.

    Batches hold texts of similar length.
    Of few texts a shape more would cost more to compile than it saves in padding.
    """
    budget = _BATCH_TOKENS.get(jax.devices()[0].platform, _MANY_TOKENS)
    rows, width = np.flatnonzero(table.lengths), table.tokens.shape[1]
    lengths = table.lengths[rows]
    if lengths.sum() > _FEW_TOKENS or not len(rows):
        batches = length_batches(lengths.tolist(), budget, limit=width)
    else:
        order, batches, start = np.argsort(-lengths, kind="stable"), [], 0
        for number, size in best_plan(lengths[order], _FEW_SHAPES, width):
            step = batch_rows(size, budget)
            batches += [(size, order[i : min(i + step, start + number)]) for i in range(start, start + number, step)]
            start += number
    for size, batch in batches:
        yield rows[batch], np.resize(rows[batch], filled_rows(len(batch), batch_rows(size, budget))), size


@partial(jax.jit, static_argnums=(0, 3))
def _states_of(decoder: Decoder, variables: PyTree, tokens: Array, layers: int) -> Array:
    out: Any = decoder.apply(variables, tokens, None, until=layers, method="hidden")
    return out[0]


log_probs_of = jax.jit(text_log_probs, static_argnums=(0,), static_argnames=("plan",))
"""`text_log_probs`, compiled once per decoder and shape."""

each_log_prob_of = jax.jit(each_log_prob, static_argnums=(0,))
"""`each_log_prob`, compiled once per decoder and shape."""
