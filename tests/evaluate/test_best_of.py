"""Best of n as a baseline: nested samples, and rewards that grow with n."""

import numpy as np
import pytest

from fssa_jax.evaluate.best_of import best_of, chosen, first_best, kl_bound
from fssa_jax.lm.writer import Samples


def writer(prompts, adapters, seed):
    """A response is its seed and its row; the adapters are not looked at."""
    texts = [f"{seed} {row}" for row in range(len(prompts))]
    tokens = [[seed, row] for row in range(len(prompts))]
    return Samples(list(prompts), texts, [[9]] * len(prompts), tokens, [None] * len(prompts))


def judge(samples, people):
    """Person p likes seeds near 10 + p."""
    return np.array([-abs(tokens[0] - 10 - p) for tokens, p in zip(samples.tokens, people, strict=True)], float)


def test_more_samples_are_better_and_hold_the_fewer():
    people = np.array([0, 3, 7])
    found = best_of(writer, judge, ["a", "b", "c"], people, (1, 4, 16), seed=5)
    assert found[1].texts == ["5 0", "5 1", "5 2"]
    assert found[4].texts == ["8 0", "8 1", "8 2"]  # the largest seed so far is nearest
    assert found[16].texts == ["10 0", "13 1", "17 2"]
    rewards = [judge(found[n], people) for n in (1, 4, 16)]
    assert (np.diff(rewards, axis=0) >= 0).all()
    assert found[16].tokens == [[10, 0], [13, 1], [17, 2]]


def test_rows_are_taken_from_their_own_sample():
    each = [writer(["a", "b"], None, seed) for seed in (0, 1)]
    assert chosen(each, np.array([1, 0])).texts == ["1 0", "0 1"]
    assert first_best(np.array([[1.0, 1.0], [0.0, 2.0]]), 2).tolist() == [0, 1]


def test_the_bound_is_that_of_a_uniform_choice():
    """Of n equally likely responses of a continuous distribution, best of n has exactly this divergence."""
    n, u = 6, np.random.default_rng(0).uniform(size=400_000)
    best = u ** (1 / n)  # the maximum of n uniforms, whose density is n u^(n − 1)
    assert kl_bound(n) == pytest.approx(np.log(n * best ** (n - 1)).mean(), abs=3e-3)
