"""States below the adapted layers, which no adapter changes: computed once per text, and kept in the user's cache.

Models that share these layers share the states: a base, a LoRA of its last layers, and a policy on either.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.files import cache_directory, clean, write_npz
from fssa_jax.lm.base import Base
from fssa_jax.lm.scoring import device_texts, table_states
from fssa_jax.lm.texts import Texts
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.train.parallel import device_memory

_log = logging.getLogger(__name__)

_SHARE = 0.25  # of the memory, for two copies of the states; one more of the real tokens while they are made
_CACHED = 4 * 10**9  # bytes of states in the user's cache, of all models and texts together
_STATES = 1  # counts changes of what is computed, so that no older value is used


def adapted_layers(adapter: Any, decoder: DecoderConfig, place: str = "config.policy.adapter") -> int:
    """The number of layers that an adapter or a LoRA changes, the last ones.

    Args:
      adapter: its settings.
      decoder: the model.
      place: name of the settings, for messages.

    Raises:
      UserError: the model has fewer.
    """
    if adapter.layers > decoder.layers:
        raise UserError(f"{place}.layers: the base has {decoder.layers} layers, not {adapter.layers}")
    return adapter.layers or decoder.layers


def spared_layers(base: Base, tokens: TokenTable, adapted: int, choice: str) -> int:
    """Number of layers that are run once per text, because nothing changes them; 0 to run all each time.

    Args:
      base, tokens: the language model and the texts.
      adapted: number of layers that are adapted, the last ones.
      choice: `cache_states` of the configuration.
    """
    decoder = base.decoder
    size = 2 * tokens.tokens.size * decoder.config.width * jnp.dtype(decoder.dtype).itemsize
    keep = choice == "yes" or (choice == "auto" and size <= device_memory() * _SHARE)
    return decoder.config.layers - adapted if keep else 0


def texts_with_states(base: Base, tokens: TokenTable, layers: int) -> Texts:
    """The token table on the device, with the states after the first `layers` layers; without for 0."""
    texts = device_texts(tokens)
    if not layers:
        return texts
    file = _file(base, tokens, layers)
    states = _read(file, base, tokens)
    if states is None:
        _log.info("states below the adapted layers: computed once for %d texts", len(tokens.lengths))
        states = table_states(base, tokens, layers)
        _write(file, states, tokens)
    return dataclasses.replace(texts, states=jnp.asarray(states), layers=layers)


def _file(base: Base, tokens: TokenTable, layers: int) -> Path:
    """The file of the cache, whatever the layers above are; what others compute is not the same to the last bit."""
    digest = hashlib.sha256()
    params = base.variables["params"]
    for leaf in jax.tree.leaves((params["embedding"], params["layers"][:layers])):
        digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    for array in (tokens.tokens, tokens.lengths):
        digest.update(np.ascontiguousarray(array).data)
    how = {
        "states": _STATES,
        "layers": layers,
        "model": repr(base.decoder.config),
        "dtype": str(base.decoder.dtype),
        "attention": base.decoder.implementation,
        "remat": base.decoder.remat,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    digest.update(json.dumps(how, sort_keys=True).encode())
    return cache_directory("states") / f"{digest.hexdigest()[:32]}.npz"


def _read(file: Path, base: Base, tokens: TokenTable) -> np.ndarray | None:
    """The states of a file, (texts, length, width), padded with zeros; None if there are none that can be used."""
    dtype, width = jnp.dtype(base.decoder.dtype), base.decoder.config.width
    try:
        with np.load(file, allow_pickle=False) as arrays:
            kept = arrays["states"].view(dtype).reshape(-1, width)  # the archive verifies its checksum
        out = np.zeros((*tokens.tokens.shape, width), dtype)
        out[_real(tokens)] = kept
    except Exception:  # damaged archives surface as many kinds
        return None
    with contextlib.suppress(OSError):
        file.touch()  # the oldest go first
    return out


def _write(file: Path, states: np.ndarray, tokens: TokenTable) -> None:
    """Keeps the states of real tokens, in place of the oldest of others; none where they are too large or cannot be."""
    size = int(tokens.lengths.sum()) * states.shape[-1] * states.itemsize
    if size > _CACHED:
        return
    with contextlib.suppress(UserError, OSError):  # a cache that cannot be written is no reason to stop
        clean(file.parent)
        others = sorted(file.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
        left = _CACHED - size
        for other in others:
            left -= other.stat().st_size
            if left < 0:
                other.unlink()
        write_npz(file, {"states": np.ascontiguousarray(states[_real(tokens)]).view(np.uint8)})


def _real(tokens: TokenTable) -> np.ndarray:
    """(texts, length) whether a place holds a token."""
    return np.arange(tokens.tokens.shape[1])[None] < np.asarray(tokens.lengths)[:, None]
