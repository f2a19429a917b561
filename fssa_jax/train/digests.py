"""CRC-32 checksums of arrays, per shard."""

import zlib
from typing import TypedDict

import jax
import numpy as np

_Corners = tuple[tuple[int, ...], tuple[int, ...]]


class Digest(TypedDict):
    """Shape and type of an array, and per piece its first and last corner and the CRC-32 of its bytes in C order."""

    shape: list[int]
    dtype: str
    pieces: list[tuple[list[int], list[int], int]]


def digest_array(x: jax.Array | np.ndarray) -> Digest:
    """The digest of an array. A sharded array is never gathered: each shard is one piece."""
    pieces = [(list(start), list(stop), _crc32(data)) for (start, stop), data in _pieces(x).items()]
    return {"shape": list(x.shape), "dtype": x.dtype.name, "pieces": pieces}


def check_array(name: str, x: jax.Array | np.ndarray, digest: Digest) -> None:
    """Checks an array against a digest; their shardings may differ.

    Raises:
      ValueError: the array does not match the digest.
    """
    if (list(x.shape), x.dtype.name) != (digest["shape"], digest["dtype"]):
        raise ValueError(f"{name} is {x.shape} {x.dtype}, not {digest['shape']} {digest['dtype']}")
    here = _pieces(x)
    for start, stop, crc32 in digest["pieces"]:
        data = here.get((tuple(start), tuple(stop)))
        if data is None:
            data = np.asarray(x)[tuple(map(slice, start, stop))]
        if _crc32(data) != crc32:
            raise ValueError(f"the checksum of {name} does not match")


def _pieces(x: jax.Array | np.ndarray) -> dict[_Corners, np.ndarray]:
    """The distinct pieces of an array on this process, by their first and last corner."""
    if not isinstance(x, jax.Array):
        return {((0,) * x.ndim, x.shape): x}
    shards = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    return {_corners(shard.index, x.shape): np.asarray(shard.data) for shard in shards}


def _corners(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Corners:
    bounds = [where.indices(size)[:2] for where, size in zip(index, shape, strict=True)]
    return tuple(start for start, _ in bounds), tuple(stop for _, stop in bounds)


def _crc32(data: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
