"""What an accelerator reaches with this project, next to its limits; every part in a budget of time. JSON.

  python -m benchmarks.accelerator                            (one GPU or TPU chip; about 7 minutes on an H100)
  python -m benchmarks.accelerator --parts=limits,decode
  python -m benchmarks.accelerator --simulate                 (every part at tiny sizes, on any machine)

Parts: torch (LoRA-DPO in PyTorch and peft, where they are installed: benchmarks/peft_steps.py), limits (products of
8,192² and a copy: what this chip reaches), train (a step of NP-DPO, 36 sequences of 512 tokens, at the sizes of
Qwen2.5 0.5B and 1.5B in bfloat16 with random weights, per kind of adapter and of rematerialisation), decode (prompts of
256 tokens and greedy decoding at 1.5B, with a different adapter per row or none), attention (XLA's and cuDNN's, with
their errors), embed (texts of 90 tokens by MiniLM and by the decoder) and reward (NP-BTL at the published shapes).

Each figure is printed as it comes, and all of them as one JSON object at the end. A part that has used up its seconds
starts no other row; what does not fit into memory says so. mfu is relative to the peak in the maker's data sheet
(benchmarks/chips.py), with 4 N FLOPs per token in training (N parameters of the frozen base: 2 N forward, 2 N back
through activations) and 2 FLOPs per token and parameter of the layers in reading prompts. of_the_limit is the time to
read the weights and the filled cache at the rate of a copy (bytes read and written per second), over the time of a
decoding step; adapters are not counted. GB are 2^30 bytes.
"""

import dataclasses
import datetime
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import peft_steps, reward_steps
from benchmarks.chips import Chip, chip_of
from benchmarks.policy_steps import SHAPES, hypernetwork, random_base, step_speed
from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.lm.engine import Engine
from fssa_jax.models.bert import BertConfig, BertEncoder, mean_pool
from fssa_jax.models.decoder import Decoder
from fssa_jax.models.hypernetwork import Hypernetwork
from fssa_jax.ops.attention import attention
from fssa_jax.progress import finished

_TOGETHER = 8
_TORCH = 25.0  # seconds for the ways of one model

Row = tuple[str, Callable[[], dict[str, Any]]]
"""The name of a figure, and what measures it."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, at full size or in small."""

    models: tuple[str, ...] = ("qwen2.5-1.5b", "qwen2.5-0.5b")
    ways: tuple[tuple[str, str], ...] = (
        *((kind, "none") for kind in ("lora_core", "plain", "film", "lora")),
        *((kind, remat) for remat in ("dots", "full") for kind in ("lora_core", "plain")),
    )
    product: int = 8192
    copied: int = 2**31
    batches: tuple[int, ...] = (32, 1, 128)
    prompt: int = 256
    new: int = 32
    attention: tuple[int, ...] = (36, 512, 12, 2, 128)
    reward: tuple[int, ...] = (1, 4096)
    bert: BertConfig = dataclasses.field(
        default_factory=lambda: BertConfig(vocabulary=30_522, width=384, layers=6, heads=12, mlp_width=1536)
    )
    texts: int = 182
    tokens: int = 90


FULL = Sizes()
SMALL = Sizes(
    models=("tiny",),
    ways=(("lora_core", "none"), ("plain", "none")),
    product=64,
    copied=2**12,
    batches=(2, 1),
    prompt=8,
    new=4,
    attention=(2, 16, 4, 2, 8),
    reward=(1,),
    bert=BertConfig(vocabulary=50, width=16, layers=2, heads=2, mlp_width=24),
    texts=3,
    tokens=9,
)

_PARTS = flags.DEFINE_list("parts", None, "parts to measure, in this order; all by default")
_SIMULATE = flags.DEFINE_bool("simulate", False, "tiny sizes, to see that every part runs")
_MODELS = flags.DEFINE_list("models", None, "shapes of language models; those above by default")
_LIMIT = flags.DEFINE_float("seconds", 420.0, "of all parts, divided among them", lower_bound=1.0)
_TRACE = flags.DEFINE_string("trace", None, "directory for a profile of one training step and of one call of decoding")


def _seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """The fastest of some runs, after one that is not timed."""
    times = []
    for _ in range(1 + repeats):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _many(run: Callable[..., Any], *inputs: Any) -> Any:
    """Several calls, one after the other on the device: the time to start one is hidden behind the one before."""
    return [run(*inputs) for _ in range(_TOGETHER)]


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


class Accelerator:
    """The parts, and what one needs of another: the chip's limits, the base, the seconds of PyTorch.

    Attributes:
      sizes: what is measured.
      trace: directory for profiles; None for none.
    """

    def __init__(self, sizes: Sizes, trace: str | None = None):
        self.sizes, self.trace = sizes, trace
        self._copy = 0.0
        self._torch: dict[str, float] = {}

    @cached_property
    def _chip(self) -> Chip | None:
        """Read late: PyTorch is measured before JAX takes the device."""
        return chip_of(jax.devices()[0].device_kind)

    @cache  # noqa: B019  one object lives as long as the program
    def _base(self, model: str) -> Any:
        return random_base(SHAPES[model])

    def _mfu(self, flops: float) -> dict[str, float]:
        """Of FLOP per second, where the chip is known."""
        return {"mfu": round(flops / (1e12 * self._chip.tflops), 3)} if self._chip else {}

    def limits(self) -> Iterator[Row]:
        """A large product in bfloat16, and the faster of two copies: bytes that are read and written per second."""

        def product() -> dict[str, Any]:
            n = self.sizes.product
            x, y = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
            speed = 2 * n**3 / _seconds(partial(_many, jax.jit(jnp.matmul), x, y)) * _TOGETHER
            return {"tflops": round(speed / 1e12, 1), **self._mfu(speed)}

        def copy() -> dict[str, Any]:
            x = jax.random.bits(jax.random.key(0), (self.sizes.copied // 4,), jnp.uint32)
            ways = partial(jnp.array, copy=True), jax.jit(lambda x: x ^ jnp.uint32(1))
            self._copy = max(2 * x.nbytes / _seconds(partial(_many, way, x)) for way in ways) * _TOGETHER
            peak = {"of_the_data_sheet": round(self._copy / 1e9 / self._chip.bandwidth, 3)} if self._chip else {}
            return {"gigabytes_per_second": round(self._copy / 1e9, 1), **peak}

        yield "product", product
        yield "copy", copy

    def torch(self) -> Iterator[Row]:
        """LoRA-DPO in PyTorch, in a process of its own: it returns all of its memory."""

        def step(model: str) -> dict[str, Any]:
            if not peft_steps.available():
                return {"left_out": "needs torch, transformers and peft"}
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                out = process.submit(peft_steps.measure, model, _TORCH).result()
            if "seconds_a_step" in out:
                self._torch[model] = out["seconds_a_step"]
            return out

        for model in self.sizes.models:
            yield model, partial(step, model)

    def train(self) -> Iterator[Row]:
        """A step of NP-DPO per kind of adapter, and of the plain LoRA of everybody."""

        def step(model: str, kind: str, remat: str) -> dict[str, Any]:
            shape = dataclasses.replace(SHAPES[model], remat=remat)
            peak = self._chip.tflops if self._chip else 0.0
            trace = self.trace if (kind, remat) == ("lora_core", "none") else None
            out = step_speed(kind, shape, self._base(model), peak, trace=trace)
            out.pop("peak_memory_gb")  # of everything so far
            seconds = out["seconds_a_step"]
            if model in self._torch:
                out["times_as_fast_as_torch"] = round(self._torch[model] / seconds, 2)
            return out

        for model in self.sizes.models:
            for kind, remat in self.sizes.ways:
                yield f"{model}, {kind}, remat {remat}", partial(step, model, kind, remat)

    def decode(self) -> Iterator[Row]:
        """Reading prompts, and decoding greedily, with one adapter per row or without."""
        s, model = self.sizes, self.sizes.models[0]
        shape = SHAPES[model]

        def write(batch: int, kind: str, implementation: Any = "auto") -> dict[str, Any]:
            decoder = Decoder(shape.config, shape.dtype, implementation=implementation)
            engine = Engine(decoder, slots=s.prompt + 8 * s.new, steps=s.new)
            base = self._base(model)
            adapters = None if kind == "none" else _adapters(hypernetwork(kind, shape.config), batch)
            tokens = jax.random.randint(jax.random.key(1), (batch, s.prompt), 0, shape.config.vocabulary)
            lengths, keys = jnp.full(batch, s.prompt), jax.random.split(jax.random.key(2), batch)
            read = partial(engine.prefill, base, tokens, lengths, keys, adapters)
            reading = _seconds(read, 3)
            state, times = read(), []
            for call in range(4):
                begun = time.perf_counter()
                state, new = engine.advance(base, state, adapters)
                jax.block_until_ready(new)
                if call:
                    times.append(time.perf_counter() - begun)
            if self.trace and (batch, kind, implementation) == (s.batches[0], "none", "auto"):
                with jax.profiler.trace(self.trace + "/decode"):
                    jax.block_until_ready(engine.advance(base, state, adapters))
            step = min(times) / s.new
            filled = s.prompt + 2.5 * s.new  # at the middle of the timed calls
            c, layers = shape.config, 2 * _size(base["params"]["layers"])
            kept = 2 * batch * filled * c.layers * c.groups * c.head_dim * jnp.dtype(shape.dtype).itemsize
            # A copy reads and writes: its bytes per second are those of reading alone.
            limit = {"of_the_limit": round((_bytes(base) + kept) / self._copy / step, 3)} if self._copy else {}
            return {
                "prefill_tokens_per_second": round(batch * s.prompt / reading),
                **{f"prefill_{k}": v for k, v in self._mfu(layers * batch * s.prompt / reading).items()},
                "decode_tokens_per_second": round(batch / step),
                "milliseconds_a_token": round(1e3 * step, 3),
                **limit,
            }

        for batch in s.batches:
            for kind in ("none", "lora_core", *(("film",) if batch == s.batches[0] else ())):
                yield f"{model}, batch {batch}, adapters {kind}", partial(write, batch, kind)
        yield f"{model}, batch {s.batches[0]}, XLA's attention", partial(write, s.batches[0], "none", "xla")

    def attention(self) -> Iterator[Row]:
        """The implementations, each with its distance from float32."""
        batch, t, heads, groups, d = self.sizes.attention

        def both(implementation: Any, out: jax.Array, *inputs: jax.Array) -> Any:
            value, pull = jax.vjp(partial(attention, implementation=implementation), *inputs)
            return value, pull(out.astype(value.dtype))

        def measure(implementation: str) -> dict[str, Any]:
            number = (heads, heads, groups, groups)
            keys = jax.random.split(jax.random.key(0), 4)
            halves = [jax.random.normal(k, (batch, t, n, d), jnp.bfloat16) for k, n in zip(keys, number, strict=True)]
            with jax.default_matmul_precision("highest"):
                exact = jax.jit(partial(both, "xla"))(*(x.astype(jnp.float32) for x in halves))
            run = jax.jit(partial(both, implementation))
            errors = [
                float(jnp.linalg.norm(mine.astype(jnp.float32) - theirs) / jnp.linalg.norm(theirs))
                for mine, theirs in zip(jax.tree.leaves(run(*halves)), jax.tree.leaves(exact), strict=True)
            ]
            return {
                "milliseconds_with_gradient": round(1e3 * _seconds(partial(run, *halves)), 3),
                "relative_errors": {n: round(e, 5) for n, e in zip(("out", "q", "k", "v"), errors, strict=True)},
            }

        yield "xla", partial(measure, "xla")
        if jax.default_backend() == "gpu":
            yield "cudnn", partial(measure, "cudnn")

    def reward(self) -> Iterator[Row]:
        """NP-BTL: training steps per second at the published shapes, the published network and ours."""
        for d in self.sizes.reward:
            for published in (False, True):
                name = f"d = {d}, {'the published network' if published else 'ours'}"
                yield name, partial(reward_steps.measure, d=d, published=published)

    def embed(self) -> Iterator[Row]:
        """Texts per second, of one length and without the time of the tokeniser."""
        s = self.sizes

        def run(vectors: Callable[..., jax.Array], variables: Any, vocabulary: int) -> dict[str, Any]:
            tokens = jax.random.randint(jax.random.key(1), (s.texts, s.tokens), 0, vocabulary)
            lengths = jnp.full(s.texts, s.tokens)
            return {
                "texts_per_second": round(s.texts / _seconds(partial(jax.jit(vectors), variables, tokens, lengths)))
            }

        def bert(dtype: Any) -> dict[str, Any]:
            model = BertEncoder(s.bert, dtype)
            empty = jnp.zeros((1, 2), jnp.int32), jnp.full(1, 2)
            variables = jax.tree.map(lambda x: x.astype(dtype), jax.jit(model.init)(jax.random.key(0), *empty))

            def vectors(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
                hidden: Any = model.apply(variables, tokens, lengths)
                return mean_pool(hidden, lengths, True)

            return run(vectors, variables, s.bert.vocabulary)

        def decoder(name: str) -> dict[str, Any]:
            shape = SHAPES[name]
            model = Decoder(shape.config, shape.dtype)

            def vectors(variables: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
                hidden: Any = model.apply(variables, tokens, method="hidden")
                return mean_pool(hidden[0], lengths, True)

            return run(vectors, self._base(name), shape.config.vocabulary)

        yield "MiniLM, float32", partial(bert, jnp.float32)
        yield "MiniLM, bfloat16", partial(bert, jnp.bfloat16)
        yield s.models[0], partial(decoder, s.models[0])


# In this order; with seconds, of 420.
BUDGETS = {"torch": 75, "limits": 15, "train": 130, "decode": 95, "attention": 40, "embed": 20, "reward": 45}


def _adapters(hyper: Hypernetwork, rows: int) -> Any:
    """Adapters of random latents, all different."""
    z = jax.random.normal(jax.random.key(3), (rows, 64))
    return jax.jit(hyper.apply)(jax.jit(hyper.init)(jax.random.key(4), z), z)


def add_costs(rows: dict[str, Any]) -> None:
    """What conditioning costs: the time of a step beyond that of the plain LoRA with the same model and settings."""
    for name, row in rows.items():
        model, kind, remat = (*name.split(", "), "", "")[:3]
        plain = rows.get(f"{model}, plain, {remat}", {}).get("seconds_a_step")
        if kind != "plain" and plain and "seconds_a_step" in row:
            row["cost_of_conditioning"] = round(row["seconds_a_step"] / plain - 1, 3)


def measure(
    parts: list[str], accelerator: Accelerator, seconds: float = 420.0, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """All rows of the parts that their shares of some seconds allow; what a part does not use goes to the next.

    Raises:
      UserError: a part that there is not.
    """
    if unknown := sorted({*parts} - {*BUDGETS}):
        raise UserError(f"--parts: {unknown[0]!r} is none of {', '.join(BUDGETS)}")
    out: dict[str, Any] = {}
    left = 0.0  # what earlier parts did not use
    for part in parts:
        begun, out[part] = time.perf_counter(), {}
        budget = left + seconds * BUDGETS[part] / sum(BUDGETS.values())
        for name, row in getattr(accelerator, part)():
            if time.perf_counter() - begun > budget:
                out[part][name] = {"left_out": "the time of this part was up"}
                continue
            try:
                out[part][name] = row()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                out[part][name] = {"error": "out of memory" if "RESOURCE_EXHAUSTED" in text else text[:500]}
            finished()
            tell(json.dumps({f"{part}: {name}": out[part][name]}))
        left = max(budget - (time.perf_counter() - begun), 0.0)
        if part == "train":
            add_costs(out[part])
    return out


def main() -> None:
    """Prints one JSON object per row, then one of everything."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    begun = time.perf_counter()
    sizes = SMALL if _SIMULATE.value else FULL
    if _MODELS.value:
        if unknown := sorted({*_MODELS.value} - {*SHAPES}):
            raise UserError(f"--models: {unknown[0]!r} is none of {', '.join(SHAPES)}")
        sizes = dataclasses.replace(sizes, models=tuple(_MODELS.value))
    out = measure(
        _PARTS.value or [*BUDGETS], Accelerator(sizes, _TRACE.value), _LIMIT.value, partial(print, flush=True)
    )
    device = jax.devices()[0]
    about = {
        "device": device.device_kind,
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "simulated": _SIMULATE.value,
        "seconds": round(time.perf_counter() - begun),
    }
    print(json.dumps(about | out, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
