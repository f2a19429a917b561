"""LoRA-DPO in PyTorch, transformers and peft: the step that ours is compared with, as a careful user would write it.

The base is frozen and, on a GPU, in bfloat16; the LoRA of rank 16 on query and value is in float32 and runs under
autocast. Log-probabilities of the reference are known beforehand. The output layer sees the tokens of responses alone.
Attention is PyTorch's scaled_dot_product_attention. The batch is 18 pairs, in micro-batches of several sizes, with and
without gradient checkpointing, and on a GPU also with every decoder layer compiled by torch.compile. The fastest of
these that fits into memory is the figure. Nothing is imported before it is measured: PyTorch takes seconds to start.
"""

import dataclasses
import importlib.util
import itertools
import resource
import time
from typing import Any

from benchmarks.policy_steps import SHAPES, TARGETS, USERS, Shape

_BETA, _REPEATS = 0.1, 3


@dataclasses.dataclass(frozen=True)
class LoraDpo:
    """A batch of pairs, the share of a sequence that is its prompt, and the LoRA that is trained."""

    pairs: int = USERS * TARGETS
    prompt: float = 0.4
    rank: int = 16
    places: tuple[str, ...] = ("q_proj", "v_proj")


def available() -> bool:
    """Whether PyTorch, transformers and peft are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))


def language_model(shape: Shape) -> Any:
    """A model of this shape with random weights, on the default device of PyTorch."""
    import transformers

    c = shape.config
    sizes = {
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups,
        "tie_word_embeddings": c.tied,
        "max_position_embeddings": shape.length,
        "attn_implementation": "sdpa",
        "use_cache": False,
    }
    if c.qkv_bias:
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, head_dim=c.head_dim))


def _model(shape: Shape, work: LoraDpo, device: str, dtype: Any, checkpointing: bool, compiled: bool) -> Any:
    import peft
    import torch

    with torch.device(device):
        base = language_model(shape)
    lora = peft.LoraConfig(r=work.rank, lora_alpha=2 * work.rank, target_modules=list(work.places))
    model = peft.get_peft_model(base.to(dtype), lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if compiled:
        for layer in model.base_model.model.model.layers:
            layer.compile(dynamic=False)
    return model.train()


def step_of(
    shape: Shape, work: LoraDpo, device: str, dtype: Any, rows: int, checkpointing: bool = False, compiled: bool = False
) -> dict[str, Any]:
    """The fastest of some steps that take `rows` sequences at a time, and the peak of memory in GB."""
    import torch

    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model = _model(shape, work, device, dtype, checkpointing, compiled)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=cuda)
    tokens = torch.randint(0, shape.config.vocabulary, (2 * work.pairs, shape.length), device=device)
    reference = torch.full((2 * work.pairs,), -1600.0, device=device)
    start, network = int(shape.length * work.prompt), model.base_model.model

    def log_probs(part: Any) -> Any:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            hidden = network.model(part).last_hidden_state
            logits = network.lm_head(hidden[:, start - 1 : -1])
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), part[:, start:].flatten(), reduction="none"
        )
        return -losses.view(len(part), -1).sum(1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for first in range(0, 2 * work.pairs, rows):
            here = slice(first, first + rows)
            chosen, rejected = (log_probs(tokens[here]) - reference[here]).view(-1, 2).unbind(1)
            loss = -torch.nn.functional.logsigmoid(_BETA * (chosen - rejected)).sum() / work.pairs
            loss.backward()
        optimizer.step()
        if cuda:
            torch.cuda.synchronize()

    times = []
    for _ in range(1 + _REPEATS):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds_a_step": round(min(times[1:]), 4), "peak_memory_gb": round(peak / 2**30, 2)}


def measure(name: str, seconds: float) -> dict[str, Any]:
    """The fastest way of a shape, found within some seconds, and all that were tried. Runs on a GPU if there is one."""
    import peft
    import torch
    import transformers

    shape, work, device = SHAPES[name], LoraDpo(), "cuda" if torch.cuda.is_available() else "cpu"
    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    begun, tried = time.perf_counter(), []
    for checkpointing, rows, compiled in itertools.product((False, True), (36, 12, 4), (False, True)[: 1 + cuda]):
        if tried and time.perf_counter() - begun > seconds:
            break
        way = {"rows": rows, "checkpointing": checkpointing, "compiled": compiled}
        try:
            tried.append(way | step_of(shape, work, device, dtype, rows, checkpointing, compiled))
        except torch.OutOfMemoryError:
            tried.append(way | {"error": "out of memory"})
        except Exception as error:
            tried.append(way | {"error": f"{type(error).__name__}: {error}"[:300]})
        if cuda:
            torch.cuda.empty_cache()
    worked = [t for t in tried if "seconds_a_step" in t]
    if not worked:
        return {"error": "no way worked", "tried": tried}
    best = min(worked, key=lambda t: t["seconds_a_step"])
    tokens = 2 * work.pairs * shape.length
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
        **best,
        "tokens_a_second": round(tokens / best["seconds_a_step"]),
        "tried": tried,
    }
