"""Files are written whole or not at all: under a temporary name, then renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fssa_jax.errors import UserError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the file and its directories, or leaves what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def replaceable(path: Path, mark: str) -> Path:
    """Checks that a directory may be replaced: it does not exist, is empty, or holds the file `mark`. Returns its path.

    Raises:
      UserError: it is a file, or a directory with other files.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a new directory")
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise UserError(f"{path}: holds other files; give a new directory")
    return path


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that replaces `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    previous = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.rename(path, previous)
            os.rename(temporary, path)
        except OSError as error:
            if previous.exists() and not path.exists():
                os.rename(previous, path)
            reason = error.strerror or str(error)
            raise UserError(f"{path}: cannot be written ({reason}); nothing was changed") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
