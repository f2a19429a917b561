"""One pure step on one device, or replicated over all devices by pmap. No other module handles devices."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from fssa_jax.errors import UserError
from fssa_jax.types import PyTree

AXIS = "devices"


def resolve(mode: str, users: int, name: str = "users") -> Literal["none", "pmap"]:
    """Resolves "auto": pmap if there is more than one device.

    Raises:
      UserError: the users of a batch cannot be divided evenly among devices.
    """
    devices = jax.device_count()
    if mode == "none" or (mode == "auto" and devices == 1):
        return "none"
    if users % devices:
        raise UserError(f"config.train.{name}: {users} cannot be shared by {devices} devices; give a multiple")
    return "pmap"


def compile_steps(steps: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], mode: Literal["none", "pmap"]):
    """Compiles `(state, data) -> (state, metrics)`; the state is donated.

    With pmap, state and data are replicated over devices, and so are the results, without a device axis.
    """
    if mode == "none":
        return jax.jit(steps, donate_argnums=0)
    # jax.pmap requires a mapped argument; the device's number serves as one.
    mapped = jax.pmap(
        lambda _, state, data: steps(state, data),
        axis_name=AXIS,
        in_axes=(0, None, None),
        out_axes=None,
        donate_argnums=1,
    )
    number = jnp.arange(jax.local_device_count())
    return lambda state, data: mapped(number, state, data)


def wait_for_all(name: str) -> None:
    """A barrier for all processes of a run on several hosts; returns at once with a single process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def replicate(tree: PyTree, mode: Literal["none", "pmap"]) -> PyTree:
    """Puts arrays where `compile_steps` expects them, once, so that no call has to copy them."""
    if mode == "none":
        return jax.device_put(tree, jax.local_devices()[0])
    return on_all(tree, jax.devices())


def on_all(tree: PyTree, devices: Sequence[Any]) -> PyTree:
    """The arrays on every one of the devices."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def device_memory() -> int:
    """Bytes of memory of a device; of simulated ones, its share of the machine's, or of the container's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if stats.get("bytes_limit", 0):
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(machine, int(text) if text.isdigit() else machine) // jax.local_device_count()
