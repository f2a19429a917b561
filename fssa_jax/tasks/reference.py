"""Log-probabilities of all texts under the base; computed once, because they do not depend on the person."""

import contextlib
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.files import cache_directory, write_npz
from fssa_jax.lm.base import Base
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.tasks.states import texts_with_states

_SCORING = 2  # counts changes of what is computed, so that no older value is used


def stored_reference(base: Base, tokens: TokenTable, path: Path, layers: int = 0) -> np.ndarray:
    """(texts,) log π_ref(response | prompt) in nats, stored in a file with fingerprints of the model and the texts.

    The user's cache has a copy for other work directories with the same model and texts. Of the first `layers` layers
    the states are kept there too (tasks/states.py), as training needs them.

    Raises:
      UserError: the file is damaged, or belongs to another model or other texts.
    """
    stamp = {"base": base.fingerprint, "texts": _digest(tokens)}
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                before, values = json.loads(str(arrays["stamp"])), arrays["log_probs"]
        except Exception as error:  # damaged archives surface as many kinds
            raise UserError(f"{path}: damaged ({error}); remove it to have it made again") from error
        for name, what in (("base", "another language model"), ("texts", "other texts or another tokenizer")):
            if before.get(name) != stamp[name]:
                raise UserError(
                    f"{path}: log-probabilities of {what}; give the base that they belong to, or another --workdir"
                )
        return values
    shared = _shared(base, stamp, layers)
    values = _read_shared(shared, stamp, len(tokens.lengths))
    known = values is not None
    if values is None:
        below = texts_with_states(base, tokens, layers) if layers else None
        values = table_log_probs(base, tokens, below=below)
    if not np.isfinite(values).all():
        raise UserError(f"{base.directory}: the log-probability of a text is not finite; the checkpoint is damaged")
    arrays = {"stamp": np.array(json.dumps(stamp)), "log_probs": values}
    write_npz(path, arrays)
    if not known:
        with contextlib.suppress(UserError, OSError):  # a cache that cannot be written is no reason to stop
            write_npz(shared, arrays)
    return values


def _shared(base: Base, stamp: dict[str, str], layers: int) -> Path:
    """The file of the cache; what is computed in another type or on other devices is not the same to the last bit."""
    where = {
        "scoring": _SCORING,
        "layers": layers,
        "remat": base.decoder.remat,
        "dtype": str(base.decoder.dtype),
        "attention": base.decoder.implementation,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    key = hashlib.sha256(json.dumps(stamp | where, sort_keys=True).encode()).hexdigest()[:32]
    return cache_directory("reference") / f"{key}.npz"


def _read_shared(path: Path, stamp: dict[str, str], number: int) -> np.ndarray | None:
    """The values in the cache; None if there are none that can be used."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            before, values = json.loads(str(arrays["stamp"])), arrays["log_probs"]
    except Exception:  # damaged archives surface as many kinds
        return None
    return values if before == stamp and values.shape == (number,) and np.isfinite(values).all() else None


def _digest(tokens: TokenTable) -> str:
    digest = hashlib.sha256()
    for array in (tokens.tokens, tokens.starts, tokens.ends):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
