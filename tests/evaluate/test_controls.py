"""Contexts that say nothing about a person."""

import numpy as np

from fssa_jax.evaluate.controls import scrambled_context
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.experiment.workdir import Workdir


def test_scrambled_contexts_have_the_same_sizes_and_nobodys_choices(finished):
    split = Workdir.open(finished[0] / "run").dataset.splits["train"]
    context = episodes_of(split, np.arange(6), 0, 3).context
    mixed = scrambled_context(context, 0)
    np.testing.assert_array_equal(mixed.mask.sum(-1), context.mask.sum(-1))
    assert sorted(np.asarray(mixed.chosen).ravel()) == sorted(np.asarray(context.chosen).ravel())
    assert (np.asarray(mixed.chosen) != np.asarray(context.chosen)).any()
