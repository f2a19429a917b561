"""Export of a person's low-rank adapters as a LoRA in the format of PEFT."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fssa_jax.errors import UserError
from fssa_jax.files import replaceable, whole_directory
from fssa_jax.lm.weight_map import decoder_weights
from fssa_jax.models.decoder import DecoderConfig
from fssa_jax.ops.adapters import AdapterTree, adapter_layers, lora_factors

_CARD = """---
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


def save_lora(directory: Path, adapters: AdapterTree, config: DecoderConfig, base: str = "", row: int = 0) -> None:
    """Writes one row of low-rank adapters as a LoRA in the format of PEFT, atomically.

    Other libraries can load it with the same base and serve one person without this package.

    Args:
      directory: where adapter_config.json, adapter_model.safetensors and a README.md are written.
      adapters: from `lora` or `lora_core`; places of lower rank are padded with zeros.
      config: of the base.
      base: directory or hub name of the base, for adapter_config.json.
      row: index of the person.

    Raises:
      UserError: FiLM adapters, or a directory that holds anything other than a LoRA.
    """
    directory = replaceable(directory, "adapter_config.json")
    kernels = [weight for weight in decoder_weights(config) if weight.path[-1] == "kernel"]
    linears = {weight.path[1:3]: weight.name.removesuffix(".weight") for weight in kernels}  # by (layer, place)
    try:
        factors = {place: lora_factors(adapter, row) for place, adapter in adapters.items()}
    except ValueError as error:
        raise UserError(f"{directory}: {error}, so it cannot be saved as a LoRA; train lora or lora_core") from error
    adapted = range(config.layers - adapter_layers(adapters), config.layers)
    rank = max(down.shape[-1] for down, _ in factors.values())
    tensors = {}
    for place, (down, up) in factors.items():
        missing = rank - down.shape[-1]
        a = np.pad(np.asarray(down, np.float32), ((0, 0), (0, 0), (0, missing)))
        b = np.pad(np.asarray(up, np.float32), ((0, 0), (0, missing), (0, 0)))
        for i, layer in enumerate(adapted):
            name = f"base_model.model.{linears[layer, place]}"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[i].T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[i].T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(linears[0, place].rsplit(".", 1)[1] for place in factors),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    if len(adapted) < config.layers:
        settings["layers_to_transform"] = list(adapted)
    card = _CARD.format(base=base or "a language model", rank=rank, places=", ".join(sorted(factors)))
    with whole_directory(directory) as target:
        (target / "README.md").write_text(card, encoding="utf-8")
        save_file(tensors, str(target / "adapter_model.safetensors"), metadata={"format": "pt"})
        (target / "adapter_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
