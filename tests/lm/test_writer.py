"""Responses for people: what is sampled depends on the adapters, and prompts leave room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.writer import Writer, sampled_kl
from fssa_jax.ops.sampling import Sampling
from tests import tiny_policy
from tests.mistakes import complaint


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


@pytest.fixture(scope="module")
def base(work):
    return work.task.base


def test_generation_depends_on_the_person_and_has_the_divergence_of_its_samples(work, base):
    variables = tiny_policy.moved(work.trained()[0])
    writer = Writer(base, Sampling(1.0), 6)
    z = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) * 3
    adapters = work.task.conditioner().apply(variables, jnp.asarray(z), method="adapt")
    samples = writer(["question 0"] * 3, adapters, seed=1)
    again = writer(["question 0"] * 3, adapters, seed=1)
    assert samples.tokens == again.tokens
    # Without chance, the same prompt is answered differently for other people alone.
    greedy = Writer(base, Sampling(0.0), 6)
    assert len(set(map(tuple, greedy(["question 0"] * 3, adapters).tokens))) > 1
    assert len(set(map(tuple, greedy(["question 0"] * 3, None).tokens))) == 1
    kl = sampled_kl(base, samples, adapters)
    end = samples.ends[0]
    row = [*samples.prompt_tokens[0], *samples.tokens[0], *([] if end is None else [end])]
    tree = jax.tree.map(lambda leaf: leaf[:, :1], adapters)
    logits = [base.decoder.apply(base.variables, jnp.asarray([row]), a)[0] for a in (tree, None)]
    start = len(samples.prompt_tokens[0])
    own, plain = (sum(float(jax.nn.log_softmax(lp[i - 1])[row[i]]) for i in range(start, len(row))) for lp in logits)
    assert kl[0] == pytest.approx(own - plain, abs=1e-3)


def test_a_prompt_that_leaves_no_room_is_cut_where_that_is_asked_for(base):
    long = "word1 " * 400 + "question 0"
    assert "do not fit into the 256 positions" in complaint(Writer(base, Sampling(0.0), 6), [long], None)
    writer = Writer(base, Sampling(0.0), 6, cut=True)
    samples = writer([long, "question 0"], None)
    assert len(samples.prompt_tokens[0]) == 250
    whole = base.tokenizer.prompt(long)
    kept = len(whole.tokens) - 250
    assert samples.prompt_tokens[0] == whole.tokens[: whole.head] + whole.tokens[whole.head + kept :]
    assert samples.prompt_tokens[1] == base.tokenizer.prompt("question 0").tokens
    assert writer.cut_prompts([long, "question 0"]) == 1


def test_a_response_that_the_limit_cuts_within_a_character_ends_before_it(base, monkeypatch):
    def cut(_, tokens):
        return ["a \ufffd b \ufffd\ufffd"] * len(tokens)

    writer, prompts = Writer(base, Sampling(1.0), 1), ["question 0"] * 32
    monkeypatch.setattr(type(base.tokenizer), "decode", cut)
    for text, finished in zip((samples := writer(prompts, None)).texts, samples.finished, strict=True):
        assert text == ("a \ufffd b \ufffd\ufffd" if finished else "a \ufffd b ")
    assert not all(samples.finished)
