"""What accelerators can do at most, from the makers' data sheets: the measure of a speed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak of dense bfloat16 products, in 1e12 FLOP/s, and of the memory, in GB/s."""

    tflops: float
    bandwidth: float


# By parts of `jax.Device.device_kind`; the first that fits.
_CHIPS = {
    "H200": Chip(989, 4800),
    "H100": Chip(989, 3350),
    "A100": Chip(312, 2039),
    "L4": Chip(121, 300),
    "TPU v6": Chip(918, 1640),
    "TPU v5 lite": Chip(197, 819),
    "TPU v5": Chip(459, 2765),
    "TPU v4": Chip(275, 1228),
}


def chip_of(kind: str) -> Chip | None:
    """The chip of a device kind; None for one that is not in the table.

    >>> from benchmarks.chips import chip_of
    >>> chip_of("NVIDIA H100 80GB HBM3").tflops
    989
    >>> chip_of("cpu") is None
    True
    """
    return next((chip for name, chip in _CHIPS.items() if name in kind), None)
