"""A table of tokenised texts on the device."""

import dataclasses

import jax

from fssa_jax.types import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Texts:
    """A token table on the device.

    Attributes:
      tokens: (texts, length).
      starts, ends: (texts,) of each response.
      states: (texts, length, width) after the first `layers` layers, which no adapter changes; None to run them. Texts
        that were narrowed to fewer tokens keep theirs; no copy is made.
      prompts: (texts,) a number per prompt, to compute a prompt once for several responses (packing.py); None where
        that is never asked for.
      layers: number of layers that `states` spare.
    """

    tokens: Leaf
    starts: Leaf
    ends: Leaf
    states: Leaf = None
    prompts: Leaf = None
    layers: int = dataclasses.field(default=0, metadata={"static": True})

    def narrowed(self, width: int) -> "Texts":
        """The first `width` tokens of every text."""
        return dataclasses.replace(self, tokens=self.tokens[:, :width])
