"""Log-probabilities of all texts under the base; computed once, because they do not depend on the person."""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.files import write_bytes
from fssa_jax.lm.base import Base
from fssa_jax.lm.scoring import table_log_probs
from fssa_jax.lm.token_table import TokenTable


def stored_reference(base: Base, tokens: TokenTable, path: Path) -> np.ndarray:
    """(texts,) log π_ref(response | prompt) in nats, stored in a file with fingerprints of the model and the texts.

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
    values = table_log_probs(base, tokens)
    if not np.isfinite(values).all():
        raise UserError(f"{base.directory}: the log-probability of a text is not finite; the checkpoint is damaged")
    with tempfile.TemporaryFile() as stream:
        np.savez(stream, stamp=json.dumps(stamp), log_probs=values)
        stream.seek(0)
        write_bytes(path, stream.read())
    return values


def _digest(tokens: TokenTable) -> str:
    digest = hashlib.sha256()
    for array in (tokens.tokens, tokens.starts, tokens.ends):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
