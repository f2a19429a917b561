"""Embeddings of many texts in a directory: sharded, resumable, distributed over processes."""

import hashlib
import io
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from fssa_jax.errors import UserError
from fssa_jax.files import check_digests, write_bytes, write_digests, write_text
from fssa_jax.lm.text_encoder import Text, TextEncoder
from fssa_jax.progress import doing

_log = logging.getLogger(__name__)

_SHARD = 1024  # texts per file


def embed_to(
    encoder: TextEncoder,
    texts: Sequence[Text],
    directory: Path,
    *,
    process: int | None = None,
    processes: int | None = None,
) -> np.ndarray:
    """Embeds texts into directory/features.npy, and returns it memory-mapped.

    Texts are split into shards, each written atomically; a resumed run computes only the missing shards. Each of n
    processes takes every n-th shard, and the first process joins them when all are complete. `cut_texts` lists the
    texts that were too long.

    Raises:
      UserError: the directory was started with another encoder or other texts; vectors that are not finite.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    stamp = {"encoder": encoder.fingerprint(), "texts": _digest(texts), "number": len(texts), "width": encoder.width}
    _claim(directory, stamp)
    final = directory / "features.npy"
    if not final.exists():
        parts = directory / "shards"
        starts = range(0, len(texts), _SHARD)
        mine = [s for i, s in enumerate(starts) if i % processes == process]
        todo = [s for s in mine if not _shard(parts, s).exists()]
        done = sum(min(_SHARD, len(texts) - s) for s in mine if s not in set(todo))
        total = sum(min(_SHARD, len(texts) - s) for s in mine)
        with doing("embedding", total, "texts", done) as work:
            at_once = max(encoder.together // _SHARD, 1)
            for group in range(0, len(todo), at_once):
                shards = todo[group : group + at_once]
                numbers = [n for s in shards for n in range(s, min(s + _SHARD, len(texts)))]
                vectors, cut = encoder.embed_and_cut([texts[n] for n in numbers])
                bad = np.flatnonzero(~np.isfinite(vectors).all(1))
                if len(bad):
                    raise UserError(
                        f"{directory}: the vector of text {numbers[bad[0]]} is not finite; the checkpoint is damaged"
                    )
                were_cut = np.asarray([numbers[i] for i in cut], np.int64)
                for i, s in enumerate(shards):
                    mine = (were_cut >= s) & (were_cut < s + _SHARD)
                    # The numbers are written first: if the vectors exist, the numbers are complete.
                    write_bytes(_cut_file(parts, s), _checksummed(were_cut[mine]))
                    write_bytes(_shard(parts, s), _checksummed(vectors[i * _SHARD : (i + 1) * _SHARD]))
                work.add(len(vectors))
        if process == 0:
            _wait(lambda: all(_shard(parts, s).exists() for s in starts), parts)
            _join(parts, list(starts), final, len(texts), encoder.width)
        _wait(final.exists, final)
    try:
        check_digests(directory)
    except ValueError as error:
        raise UserError(f"{directory}: damaged ({error}); remove it and run the same command again") from error
    features = np.load(final, mmap_mode="r", allow_pickle=False)
    cut = cut_texts(directory)
    if cut and process == 0:
        _log.warning("%d texts are longer than %d tokens and were cut", len(cut), encoder.limit)
    if features.shape != (len(texts), encoder.width):
        raise UserError(f"{final}: {features.shape} instead of {(len(texts), encoder.width)}; remove {directory}")
    return features


def _claim(directory: Path, stamp: dict) -> None:
    file = directory / "embedding.json"
    if file.exists():
        try:
            before = json.loads(file.read_text())
            before = before if isinstance(before, dict) else {}
        except (ValueError, RecursionError):
            before = {}
        for name, what in (("encoder", "another encoder or other settings"), ("texts", "other texts")):
            if before.get(name) != stamp[name]:
                raise UserError(f"{directory}: was started with {what}; give another directory, or remove this one")
        return
    write_text(file, json.dumps(stamp))


def _shard(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.npy"


def _cut_file(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.cut.npy"


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _checksummed(array: np.ndarray) -> bytes:
    """An array as a .npy file with a CRC-32 behind it, which numpy.load ignores."""
    content = _npy(array)
    return content + zlib.crc32(content).to_bytes(4, "big")


def _verified(path: Path) -> np.ndarray:
    """The array of `_checksummed`.

    Raises:
      UserError: the file was changed. It is removed, so that the next run makes it again.
    """
    content = path.read_bytes()
    if zlib.crc32(content[:-4]).to_bytes(4, "big") != content[-4:]:
        path.unlink()
        raise UserError(f"{path}: damaged, and removed; run the same command again, which embeds its texts again")
    return np.load(io.BytesIO(content), allow_pickle=False)


_PATIENCE = 24 * 3600  # seconds that a process waits for the others


def _wait(ready: Callable[[], bool], what: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise UserError(f"{what}: other processes did not finish; run the same command again in all of them")
        time.sleep(0.2)


def _join(parts: Path, starts: list[int], final: Path, number: int, width: int) -> None:
    temporary = final.with_name(".features.tmp")
    header = {"descr": "<f4", "fortran_order": False, "shape": (number, width)}
    try:
        # Written, not memory-mapped: a full disk then raises an error instead of a signal.
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
            for s in starts:
                stream.write(_verified(_shard(parts, s)).astype("<f4").tobytes())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise UserError(
            f"{final}: cannot be written ({reason}); free disk space, then run the same command again"
        ) from error
    cut = final.with_name("cut.npy")
    write_bytes(cut, _npy(np.concatenate([_verified(_cut_file(parts, s)) for s in starts])))
    # Before the rename: another process that sees the vectors finds their checksum.
    write_digests(final.parent, {final.name: temporary, cut.name: cut})
    temporary.rename(final)
    shutil.rmtree(parts)


def cut_texts(directory: Path) -> list[int]:
    """Indices of the texts that `embed_to` had to cut."""
    file = directory / "cut.npy"
    return np.load(file, allow_pickle=False).tolist() if file.is_file() else []


def _digest(texts: Sequence[Text]) -> str:
    digest = hashlib.sha256()
    for line in _lines(texts):
        digest.update(line)
    return digest.hexdigest()


def _lines(texts: Sequence[Text]) -> Iterator[bytes]:
    for text in texts:
        yield json.dumps(list(text), ensure_ascii=False).encode() + b"\n"
