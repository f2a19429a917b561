"""Files are written whole or not at all: under a temporary name, then renamed. What is read back can be verified."""

import contextlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from fssa_jax.errors import UserError

_T = TypeVar("_T")

# Names of what is being written, or being replaced, by a process on a host.
_OURS = re.compile(r"\.(?P<name>.+)\.(?:(?P<host>[0-9a-f]{8})-)?(?P<process>\d+)\.(?P<kind>tmp|old)")
_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_DAY = 24 * 3600  # seconds after which what another host was writing counts as left by a killed process
DIGESTS = "digests.json"
LOCK = ".lock"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the file and its directories, or leaves what was there."""
    _write(path, lambda file: file.write(content))


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """`write_bytes` of what `fill` writes into an open file."""
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_bytes` of named arrays, as numpy stores them."""
    _write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def replaceable(path: Path, mark: str) -> Path:
    """Checks that a directory may be replaced: it does not exist, is empty, or holds the file `mark`. Returns its path.

    What killed processes left in it does not count.

    Raises:
      UserError: it is a file, or a directory with other files.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a new directory")
    if path.is_dir() and any(not is_ours(file) for file in path.iterdir()) and not (path / mark).is_file():
        raise UserError(f"{path}: holds other files; give a new directory")
    return path


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that replaces `path` when the block ends without an error."""
    clean(path.parent, path.name)
    temporary, previous = _beside(path, "tmp"), _beside(path, "old")
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


def remove_directory(path: Path) -> None:
    """Removes a directory at once: under its own name it is never seen in parts."""
    removed = _beside(path, "tmp")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(path, removed)
    shutil.rmtree(removed, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    """The name under which this process writes, or puts aside, a file or directory."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.{kind}")


def is_ours(path: Path) -> bool:
    """Whether a name is that of a file or directory that `write_bytes` or `whole_directory` was writing."""
    return _OURS.fullmatch(path.name) is not None


def clean(directory: Path, name: str = "") -> None:
    """Removes what killed processes left in a directory; with `name`, of what is about to be written alone.

    A directory that was being replaced when the process was killed is put back.
    """
    with contextlib.suppress(OSError):
        for path in list(directory.iterdir()):
            match = _OURS.fullmatch(path.name)
            if not match or (name and match["name"] != name):
                continue
            # In containers a new process often has the number of the killed one.
            ours = bool(name) and match["host"] in (_HOST, None) and int(match["process"]) == os.getpid()
            if not ours and _is_written(path, match["host"], int(match["process"])):
                continue
            original = directory / match["name"]
            if match["kind"] == "old" and not original.exists():
                os.rename(path, original)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_written(path: Path, host: str | None, process: int) -> bool:
    """Whether the process that was writing this still runs; on another host, whether it began within a day."""
    if host not in (_HOST, None):
        return time.time() - path.stat().st_mtime < _DAY
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


@contextlib.contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Holds the lock of a directory while the block runs.

    Raises:
      UserError: another process holds it, or the directory cannot be written.
    """
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{directory}: another process is {what} here; wait for it, or give another --workdir"
        ) from error
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); give another --workdir") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may have been removed
            if made and [path.name for path in directory.iterdir()] == [LOCK]:  # nothing was begun
                shutil.rmtree(directory)
        lock.release()


def digest_file(path: Path) -> int:
    """The CRC-32 of a file."""
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def seal(content: _T) -> dict[str, _T | int]:
    """JSON content with its checksum."""
    return {"content": content, "crc32": _crc32_of_json(content)}


def unseal(sealed: Mapping[str, _T]) -> _T:
    """The content of `seal`, checked.

    Raises:
      ValueError: the checksum is missing or does not match.
    """
    if not isinstance(sealed, dict) or set(sealed) != {"content", "crc32"}:
        raise ValueError("it has no checksum")
    if _crc32_of_json(sealed["content"]) != sealed["crc32"]:
        raise ValueError("its checksum does not match")
    return sealed["content"]


def _crc32_of_json(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def with_checksum(values: Mapping[str, object]) -> dict[str, object]:
    """A JSON object with its own checksum as the value of "crc32"."""
    return {**values, "crc32": _crc32_of_json(dict(values))}


def without_checksum(values: Mapping[str, object]) -> dict[str, object]:
    """The object of `with_checksum`, checked.

    Raises:
      ValueError: the checksum is missing or does not match.
    """
    content = {name: value for name, value in values.items() if name != "crc32"}
    if values.get("crc32") != _crc32_of_json(content):
        raise ValueError("its checksum does not match")
    return content


def write_digests(directory: Path, files: Mapping[str, Path] | None = None) -> None:
    """Writes digests.json: the checksums of all files of a directory, or of some by name.

    Args:
      directory: where it is written.
      files: name ↦ where the file is now.
    """
    if files is None:
        files = {path.name: path for path in sorted(directory.iterdir()) if path.is_file() and path.name != DIGESTS}
    content = {name: digest_file(path) for name, path in files.items()}
    write_text(directory / DIGESTS, json.dumps(seal(content)))


def check_digests(directory: Path) -> None:
    """Verifies the files that digests.json lists.

    Raises:
      ValueError: a file is missing or was changed; or there is no readable digests.json.
    """
    try:
        content = unseal(json.loads((directory / DIGESTS).read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{DIGESTS}: {getattr(error, 'strerror', None) or error}") from error
    for name, crc32 in content.items():
        path = directory / str(name)
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if digest_file(path) != crc32:
            raise ValueError(f"the checksum of {name} does not match")


def cache_directory(name: str) -> Path:
    """A directory of the user's cache; it need not exist, and whatever is in it can be made again."""
    home = os.environ.get("XDG_CACHE_HOME")
    if not home:
        try:
            home = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            home = Path(tempfile.gettempdir()) / f"fssa_jax-{os.getuid()}"
    return Path(home) / "fssa_jax" / name
