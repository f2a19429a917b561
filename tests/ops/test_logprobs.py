"""Chunked log-probabilities equal the plain log-softmax, gradients too; the response is scored from its first token."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fssa_jax.ops.logprobs import response_log_probs, token_log_probs

GOLDEN = Path(__file__).parents[1] / "golden"


def case(seed=0, n=50, d=16, vocabulary=301):
    rng = np.random.default_rng(seed)
    hidden, kernel = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((n, d), (d, vocabulary)))
    return hidden, kernel, jnp.asarray(rng.integers(0, vocabulary, n)), jnp.asarray(rng.random(n) < 0.4)


def plain(hidden, kernel, targets, mask, softcap=None):
    logits = hidden @ kernel
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    log_p = jax.nn.log_softmax(logits)
    return jnp.where(mask, jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0], 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 7, 16, 64]), st.sampled_from([None, 3.0]))
def test_any_chunk_is_the_plain_log_softmax(seed, chunk, softcap):
    args = case(seed)
    out = token_log_probs(*args, chunk=chunk, softcap=softcap)
    np.testing.assert_allclose(out, plain(*args, softcap), atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_of_states_alone_are_those_of_the_plain_log_softmax(softcap):
    """With an output layer that is not trained they are made with the value; each token has a weight of its own."""
    hidden, kernel, targets, mask = case()
    weights = jnp.linspace(-1, 2, len(targets))

    def gradient(function):
        return jax.jit(jax.grad(lambda h, k: (weights * function(h, k)).sum()))(hidden, kernel)

    ours = gradient(lambda h, k: token_log_probs(h, k, targets, mask, chunk=8, softcap=softcap))
    np.testing.assert_allclose(ours, gradient(lambda h, k: plain(h, k, targets, mask, softcap)), atol=1e-5)


def test_an_output_layer_that_is_not_trained_saves_a_product_with_the_vocabulary():
    args = case(n=64, d=32, vocabulary=2000)

    def work(argnums):
        loss = jax.value_and_grad(lambda h, k, t, m: token_log_probs(h, k, t, m, chunk=64).sum(), argnums=argnums)
        text = jax.jit(loss).lower(*args).compile().as_text()
        return text.count(" dot(") + text.count("__onednn$matmul") + text.count('custom_call_target="__')

    assert work(0) == 2
    assert work((0, 1)) == 4


def test_gradients_are_those_of_the_plain_log_softmax():
    hidden, kernel, targets, mask = case()
    ours = jax.grad(lambda h, k: token_log_probs(h, k, targets, mask, chunk=8).sum(), argnums=(0, 1))(hidden, kernel)
    theirs = jax.grad(lambda h, k: plain(h, k, targets, mask).sum(), argnums=(0, 1))(hidden, kernel)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_half_precision_states_are_summed_in_float32():
    hidden, kernel, targets, mask = case(vocabulary=5000)
    half = token_log_probs(hidden.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), targets, mask)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, kernel)]
    np.testing.assert_allclose(half, plain(*rounded, targets, mask), atol=1e-4)
    assert half.dtype == jnp.float32


def test_nothing_masked_in_is_zero_with_zero_gradient():
    hidden, kernel, targets, _ = case()
    value, gradient = jax.value_and_grad(lambda h: token_log_probs(h, kernel, targets, jnp.zeros(50, bool)).sum())(
        hidden
    )
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("chunk", [16, 64])
def test_no_array_of_tokens_by_vocabulary_is_held(chunk):
    """The compiled forward and backward pass need memory for one chunk of logits, not for all 2,048 rows."""
    n, d, vocabulary = 2048, 8, 20_000
    args = (jnp.zeros((n, d)), jnp.zeros((d, vocabulary)), jnp.zeros(n, int), jnp.ones(n, bool))
    loss = jax.grad(lambda h, k, t, m: token_log_probs(h, k, t, m, chunk=chunk).sum(), argnums=(0, 1))
    memory = jax.jit(loss).lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 6 * chunk * vocabulary * 4 + 8 * 2**20


def test_golden_log_probs_of_responses():
    golden = np.load(GOLDEN / "response_logprobs.npz")
    tokens = jnp.asarray(golden["in/input_ids"].reshape(-1, 12))
    starts, ends = (jnp.asarray(golden[f"in/{n}"].reshape(-1)) for n in ("response_start_idx", "cls_idx"))
    out = response_log_probs(jnp.asarray(golden["in/logits"]), jnp.eye(23), tokens, starts, ends, chunk=5)
    np.testing.assert_allclose(out, golden["out/logprobs"].reshape(-1), atol=1e-5)


def test_a_row_of_one_token_has_nothing_to_score():
    zero = jnp.zeros(1, int)
    assert response_log_probs(jnp.ones((1, 1, 4)), jnp.ones((4, 8)), jnp.ones((1, 1), int), zero, zero + 1) == 0


def test_the_first_token_of_the_response_counts():
    """Fault 8 of the published code."""
    tokens = jnp.array([[5, 6, 7, 8]])
    hidden = jnp.zeros((1, 4, 9)).at[0, 1, 7].set(3.0)  # what stands before token 7 likes it
    log_p = response_log_probs(hidden, jnp.eye(9), tokens, jnp.array([2]), jnp.array([3]))
    np.testing.assert_allclose(log_p, jax.nn.log_softmax(hidden[0, 1])[7], rtol=1e-6)


def test_rows_may_stand_in_a_batch():
    hidden, kernel, targets, mask = case(n=48)
    batched = token_log_probs(hidden.reshape(3, 16, -1), kernel, targets.reshape(3, 16), mask.reshape(3, 16), chunk=8)
    np.testing.assert_allclose(batched.ravel(), token_log_probs(hidden, kernel, targets, mask, chunk=8), atol=1e-6)
    assert batched.shape == (3, 16)


SHARDED = """
import math, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from fssa_jax.ops.logprobs import response_log_probs

batch, t, d, vocabulary = 8, 32, 16, 512
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
one = jax.devices()[0]
arrays = [
    rng.normal(size=(batch, t, d)).astype(np.float32),
    rng.normal(size=(d, vocabulary)).astype(np.float32),
    rng.integers(0, vocabulary, (batch, t)),
    rng.integers(1, 16, batch),
    rng.integers(16, t, batch),
]
split = [jax.device_put(x, NamedSharding(mesh, P() if i == 1 else P("data"))) for i, x in enumerate(arrays)]
weights = jnp.linspace(-1, 2, batch)
number = re.compile(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\\(")


def values(*args):
    return response_log_probs(*args, chunk=8)


def gradient(of):
    return jax.value_and_grad(lambda *args: (weights * values(*args)).sum(), argnums=of)


# Of how many numbers a collective may be: a row of the batch, each; the output layer, where it is trained.
for function, most in ((values, 1), (gradient(0), 1), (gradient((0, 1)), d * vocabulary)):
    program = jax.jit(function).lower(*split).compile()
    text = program.as_text()
    results = [match[1] for line in text.splitlines() if (match := number.search(line))]
    shapes = [shape for result in results for shape in re.findall(r"\\[([\\d,]*)\\]", result)]
    moved = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
    assert max(moved) <= most, (moved, most)
    assert f"f32[8,{vocabulary}]" in text, "a device does not take a chunk of its own"
    expected = jax.jit(function)(*(jax.device_put(x, one) for x in arrays))
    for ours, theirs in zip(jax.tree.leaves(program(*split)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    if function is values:
        assert program(*split).sharding.spec == P("data")
print("ok")
"""


def test_a_sharded_batch_stays_where_it_is():
    """On 4 simulated devices: the compiled programs of value and gradient move nothing larger than the result."""
    child = subprocess.run(
        [sys.executable, "-c", SHARDED],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    assert child.stdout == "ok\n", child.stderr[-2000:]
