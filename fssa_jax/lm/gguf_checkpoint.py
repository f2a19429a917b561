"""A GGUF file as the directory of a checkpoint: config.json and tokenizer next to a link to the file.

The directory is in the user's cache (`$XDG_CACHE_HOME/fssa_jax/gguf`), one for each state of a file. Weights are read
from the GGUF file itself.
"""

import hashlib
import json
from pathlib import Path

from fssa_jax.errors import UserError
from fssa_jax.files import cache_directory, whole_directory
from fssa_jax.lm.gguf import open_gguf
from fssa_jax.lm.gguf_tokenizer import tokenizer_of
from fssa_jax.lm.tensor_files import GGUF

_FORMAT = 1  # of what is derived from a file


def directory_of(file: Path) -> Path:
    """The directory of the checkpoint that a GGUF file is; it is made once.

    Raises:
      UserError: the file is damaged or not supported (see `Gguf`, `tokenizer_of`), or the cache cannot be written.
    """
    file = file.resolve()
    try:
        state = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    key = repr((_FORMAT, str(file), state.st_size, state.st_mtime_ns))
    directory = cache_directory("gguf") / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if (directory / "config.json").is_file() and (directory / GGUF).is_file():
        return directory
    opened = open_gguf(file)
    try:
        config, tokenizer = opened.config, tokenizer_of(opened.metadata, file)
    except UserError:
        raise
    except Exception as error:  # values of other types than they should have; tokenizers raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file}: metadata that cannot be used ({reason}); download it again") from error
    with whole_directory(directory) as target:
        tokenizer.save_pretrained(str(target))
        (target / GGUF).symlink_to(file)
        (target / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return directory
