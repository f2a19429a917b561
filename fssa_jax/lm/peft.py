"""Low-rank adapters as a LoRA in the format of PEFT: export, and merging into the weights of a base."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from fssa_jax.errors import UserError
from fssa_jax.files import DIGESTS, check_digests, is_ours, replaceable, whole_directory, write_digests
from fssa_jax.lm.tensor_files import Shards
from fssa_jax.lm.weight_map import Weight, decoder_weights
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.ops.adapters import AdapterTree, adapter_layers, lora_factors
from fssa_jax.types import PyTree

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
# Settings of PEFT that change what an adapter computes, and the values with which it is an ordinary LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    # Others replace the weights of the base by what the factors leave.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}

PERSON_CARD = """---
base_model: {base}
library_name: peft
tags: [lora, fssa_jax]
---

# The adapter of one person

A LoRA of rank {rank} on {places}. A hypernetwork of fssa_jax emitted it from a few choices of one person
(arXiv 2412.13998, NP-DPO); nothing was trained for the person. Load it with PEFT, or serve it with its base:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "THIS_DIRECTORY")
```
"""


SHARED_CARD = """---
base_model: {base}
library_name: peft
tags: [lora, fssa_jax]
---

# A LoRA for everybody

A LoRA of rank {rank} on {places}: supervised fine-tuning by fssa_jax, with `config.policy.lora`. Load it with PEFT, or
give this directory as `--config.policy.base` to steer the fine-tuned model.
"""


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA of a base: ΔW = scale · A B of linear layers.

    Attributes:
      base: directory or hub name of the base.
      settings: of PEFT, as they were read.
      rank: r, of every linear layer.
      scale: alpha / r, or alpha / √r for rank-stabilised LoRA.
      tensors: by the names of PEFT; lora_A (r, inputs) and lora_B (outputs, r).
      fingerprint: identifies scale and tensors.
    """

    base: str
    settings: dict[str, Any]
    rank: int
    scale: float
    tensors: dict[str, np.ndarray]
    fingerprint: str


def is_lora(directory: Path) -> bool:
    """Whether a directory holds an adapter of PEFT and no whole checkpoint."""
    return (directory / SETTINGS).is_file() and not (directory / "config.json").is_file()


def read_lora(directory: Path) -> Lora:
    """Reads a LoRA in the format of PEFT.

    Raises:
      UserError: a file is missing or damaged, or the adapter is no ordinary LoRA.
    """
    try:
        if (directory / DIGESTS).is_file():
            check_digests(directory)
    except ValueError as error:
        raise UserError(
            f"{directory}: damaged ({error}); restore it, or remove {DIGESTS} if you changed the file yourself"
        ) from error
    try:
        settings = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
        file = Shards([directory / TENSORS])
        tensors = {name: file.read(name) for name in file.names()}
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        base = str(settings.get("base_model_name_or_path") or "")
        other = next((n for n, plain in _PLAIN.items() if n in settings and settings[n] not in plain), None)
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except Exception as error:  # damaged files surface as many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{directory}: no readable LoRA in the format of PEFT ({reason})") from error
    if other:
        raise UserError(
            f"{directory}: {other} = {settings[other]!r} is not supported; merge the adapter with PEFT and give the "
            "merged model"
        )
    if not tensors:
        raise UserError(f"{directory / TENSORS}: holds no tensors; get it again")
    digest = hashlib.sha256(repr(scale).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return Lora(base, settings, rank, scale, tensors, digest.hexdigest())


def merge_lora(variables: PyTree, lora: Lora, config: DecoderConfig, where: Path) -> PyTree:
    """The variables of a decoder with W + scale · A B in place of W; leaves without a LoRA are shared with the input.

    The sum is computed in float32, and rounded to the type of the weights.

    Args:
      variables: {"params": …} of `Decoder`.
      lora: from `read_lora`.
      config: of the decoder.
      where: its directory, for messages.

    Raises:
      UserError: a tensor is of no linear layer of the decoder, has another shape, or lacks its partner.
    """
    layers = [dict(layer) for layer in variables["params"]["layers"]]
    kernels = kernels_of(config)
    for linear, parts in by_linear(lora, config, where).items():
        weight = kernels[linear]
        _, layer, place, _ = weight.path
        assert isinstance(layer, int)
        old = layers[layer][place]
        new = old["kernel"].astype(jnp.float32) + _change(parts, lora.scale)
        layers[layer][place] = {**old, "kernel": new.astype(old["kernel"].dtype)}
    return {**variables, "params": {**variables["params"], "layers": layers}}


def kernels_of(config: DecoderConfig) -> dict[str, Weight]:
    """The weights of the linear layers of a decoder, by the names that PEFT gives the layers."""
    return {w.name.removesuffix(".weight"): w for w in decoder_weights(config) if w.path[-1] == "kernel"}


def by_linear(lora: Lora, config: DecoderConfig, where: Path) -> dict[str, dict[str, np.ndarray]]:
    """lora_A (r, inputs) and lora_B (outputs, r) of each linear layer; see `merge_lora`."""
    kernels, found = kernels_of(config), {}
    for name, tensor in lora.tensors.items():
        linear, _, part = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        if linear not in kernels or part not in ("lora_A", "lora_B"):
            raise UserError(f"{where}: {name} is of no linear layer of the base; it is an adapter of another model")
        found.setdefault(linear, {})[part] = tensor
    for linear, parts in found.items():
        inputs, outputs = kernels[linear].shape
        a, b = (parts[name].shape if name in parts else None for name in ("lora_A", "lora_B"))
        if (a, b) != ((lora.rank, inputs), (outputs, lora.rank)):
            shape = f"rank {lora.rank} of {(inputs, outputs)}"
            raise UserError(f"{where}: the tensors of {linear} have shapes {a} and {b}, which do not fit {shape}")
    return found


def _change(parts: dict[str, np.ndarray], scale: float) -> jax.Array:
    """ΔW of a kernel (inputs, outputs), in float32."""
    down, up = (jnp.asarray(parts[name], jnp.float32).T for name in ("lora_A", "lora_B"))
    return scale * jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)


def save_lora(
    directory: Path,
    adapters: AdapterTree,
    config: DecoderConfig,
    base: str = "",
    row: int = 0,
    card: str = PERSON_CARD,
    under: Lora | None = None,
) -> None:
    """Writes one row of low-rank adapters as a LoRA in the format of PEFT, atomically.

    Other libraries can load it with the same base and serve one person without this package.

    Args:
      directory: where adapter_config.json, adapter_model.safetensors and a README.md are written.
      adapters: from `lora` or `lora_core`; places of lower rank are padded with zeros.
      config: of the base.
      base: directory or hub name of the base, for adapter_config.json.
      row: index of the person.
      card: the README.md, with {base}, {rank} and {places}.
      under: the LoRA that is merged into the base of the adapters. It is added, so that `base` is the model below.

    Raises:
      UserError: FiLM adapters, or a directory that holds anything other than a LoRA.
    """
    directory = replaceable(directory, SETTINGS)
    own = {"README.md", DIGESTS, SETTINGS, TENSORS}
    if directory.is_dir() and any(file.name not in own and not is_ours(file) for file in directory.iterdir()):
        raise UserError(f"{directory}: holds more than a LoRA; give a new directory")
    linears = {w.path[1:3]: name for name, w in kernels_of(config).items()}  # by (layer, place)
    try:
        factors = {place: lora_factors(adapter, row) for place, adapter in adapters.items()}
    except ValueError as error:
        raise UserError(f"{directory}: {error}, so it cannot be saved as a LoRA; train lora or lora_core") from error
    first = config.layers - adapter_layers(adapters)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}  # (r, inputs) and (outputs, r) of each linear layer
    for place, pair in factors.items():
        down, up = (np.asarray(factor, np.float32).swapaxes(1, 2) for factor in pair)
        for i, both in enumerate(zip(down, up, strict=True), start=first):
            parts.setdefault(linears[i, place], []).append(both)
    if under is not None:
        for linear, of_linear in by_linear(under, config, directory).items():
            a, b = (of_linear[name].astype(np.float32) for name in ("lora_A", "lora_B"))
            parts.setdefault(linear, []).append((under.scale * a, b))
    rank = max(sum(len(a) for a, _ in of_linear) for of_linear in parts.values())
    tensors = {}
    for linear, of_linear in parts.items():
        a, b = (np.concatenate(side, axis) for axis, side in enumerate(zip(*of_linear, strict=True)))
        missing = rank - len(a)
        tensors[f"{_PREFIX}{linear}.lora_A.weight"] = np.pad(a, ((0, missing), (0, 0)))
        tensors[f"{_PREFIX}{linear}.lora_B.weight"] = np.pad(b, ((0, 0), (0, missing)))
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({linear.rsplit(".", 1)[1] for linear in parts}),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    kernels = kernels_of(config)
    adapted = sorted({int(kernels[linear].path[1]) for linear in parts})
    if len(adapted) < config.layers:
        settings["layers_to_transform"] = adapted
    places = ", ".join(sorted({str(kernels[linear].path[2]) for linear in parts}))
    text = card.format(base=base or "a language model", rank=rank, places=places)
    with whole_directory(directory) as target:
        (target / "README.md").write_text(text, encoding="utf-8")
        _write(target, tensors, settings)
        write_digests(target)


def write_lora(directory: Path, lora: Lora) -> None:
    """Writes the two files of a LoRA that was read into a directory, next to what else it holds."""
    _write(directory, lora.tensors, lora.settings)


def _write(directory: Path, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(whole, str(directory / TENSORS), metadata={"format": "pt"})
    (directory / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
