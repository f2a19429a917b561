"""Language models in GGUF files, the format of llama.cpp: their shape, and their weights as transformers names them.

Weights may be quantised; they are read as float32. The package `gguf` knows the format and the quantisations. What
llama.cpp changes when it writes a file is undone here: the order of the rows of query and key of a Llama, and the 1
that is added to the scales of Gemma's norms.
"""

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.errors import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2")
_GEMMA = ("gemma", "gemma2")

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IN_LAYER_OF_GEMMA2 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_FREQUENCIES = "rope_freqs.weight"
# Of Llama 3: (factor, low_freq_factor, high_freq_factor, original context). Files hold the frequencies alone.
_LLAMA3_ROPES = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))
_GEMMA2_27B_LAYERS = 46  # its queries are scaled by the width per head, not by the size of a head


class Gguf:
    """An open GGUF file: `metadata`, `config`, and tensors by the names that transformers gives them.

    Raises:
      UserError: the file is damaged, or its architecture or a quantisation is not supported.

    >>> from fssa_jax.lm.gguf import Gguf
    >>> Gguf("model.gguf").config["model_type"]  # doctest: +SKIP
    'llama'
    """

    def __init__(self, file: Path | str):
        import gguf

        self.file = Path(file)
        try:
            reader = gguf.GGUFReader(str(file))
            self.metadata = {name: field.contents() for name, field in reader.fields.items()}
            found = {tensor.name: tensor for tensor in reader.tensors}
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
        except Exception as error:  # the library raises many kinds for what is not as it should be
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{file}: truncated, damaged or not a GGUF file ({reason})") from error
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise UserError(f"{file}: architecture {self.architecture!r} is not supported; known are {known}")
        self._dequantize, frequencies = gguf.dequantize, found.pop(_FREQUENCIES, None)
        self._check_types(found)
        self._tensors = {self._name(name): tensor for name, tensor in found.items()}
        self._rope_factors = None if frequencies is None else np.asarray(frequencies.data, np.float64).reshape(-1)

    def _check_types(self, found: dict[str, Any]) -> None:
        of_type: dict[str, Any] = {tensor.tensor_type.name: tensor for tensor in found.values()}
        for name, tensor in of_type.items():
            try:
                self._dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], tensor.tensor_type)
            except NotImplementedError as error:
                raise UserError(
                    f"{self.file}: quantisation {name} ({tensor.name}) is not supported; give another, such as Q8_0 or "
                    "Q4_K"
                ) from error

    def _name(self, name: str) -> str:
        """The name of a tensor in transformers; unknown ones keep their own, and loading the model refuses them."""
        stem, _, kind = name.rpartition(".")
        if stem in _OUTSIDE:
            return f"{_OUTSIDE[stem]}.{kind}"
        match = _LAYER.fullmatch(name)
        names = _IN_LAYER | _IN_LAYER_OF_GEMMA2 if self.architecture == "gemma2" else _IN_LAYER
        if match and match[2] in names:
            return f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}"
        return name

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a slice of it, in float32. The whole tensor is read.

        Raises:
          UserError: values that are not finite; files have no checksums.
        """
        tensor = self._tensors[name]
        with np.errstate(all="ignore"):
            values = np.asarray(self._dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(self.shape(name))
        if not np.isfinite(values).all():
            raise UserError(f"{self.file}: {tensor.name} has values that are not finite; download it again")
        if self.architecture == "llama" and (match := re.search(r"self_attn\.([qk])_proj\.", name)):
            values = _unpermuted(values, self._heads if match[1] == "q" else self._groups)
        if self.architecture in _GEMMA and name.endswith("norm.weight"):
            values = values - np.float32(1)
        return values[index] if index else values

    def _value(self, name: str, default: Any = None) -> Any:
        """A value of the architecture.

        Raises:
          UserError: it is missing, without a default.
        """
        value = self.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise UserError(f"{self.file}: no {self.architecture}.{name} in the metadata; download it again")
        return value

    @property
    def _heads(self) -> int:
        return int(self._value("attention.head_count"))

    @property
    def _groups(self) -> int:
        return int(self._value("attention.head_count_kv", self._heads))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json of the model.

        Raises:
          UserError: the metadata is incomplete, or has a rotary embedding that is not supported.
        """
        kind, width, layers = self.architecture, int(self._value("embedding_length")), int(self._value("block_count"))
        head_dim = int(self._value("attention.key_length", self._value("rope.dimension_count", width // self._heads)))
        if int(self._value("rope.dimension_count", head_dim)) != head_dim:
            raise UserError(f"{self.file}: a rotary embedding of a part of each head is not supported")
        embedding = "model.embed_tokens.weight"
        if embedding not in self._tensors:
            raise UserError(f"{self.file}: no token_embd.weight; download it again")
        out = {
            "model_type": kind,
            "vocab_size": self.shape(embedding)[0],
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._groups,
            "head_dim": head_dim,
            "intermediate_size": int(self._value("feed_forward_length")),
            "max_position_embeddings": int(self._value("context_length")),
            "rms_norm_eps": _decimal(self._value("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "torch_dtype": "float32",
            "rope_parameters": self._rope(head_dim),
        }
        names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma", "gemma2": "Gemma2"}
        out["architectures"] = [f"{names[kind]}ForCausalLM"]
        if kind == "llama" and "model.layers.0.self_attn.q_proj.bias" in self._tensors:
            out["attention_bias"] = True
        if kind == "gemma2":
            out |= {
                "sliding_window": int(self._value("attention.sliding_window", 4096)),
                "attn_logit_softcapping": float(self._value("attn_logit_softcapping", 50.0)),
                "final_logit_softcapping": float(self._value("final_logit_softcapping", 30.0)),
                "query_pre_attn_scalar": width // self._heads if layers == _GEMMA2_27B_LAYERS else head_dim,
            }
        for name in ("bos", "eos", "padding"):
            if (number := self.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
                out[f"{name.replace('padding', 'pad')}_token_id"] = int(number)
        return out

    def _rope(self, head_dim: int) -> dict[str, Any]:
        out: dict[str, Any] = {"rope_theta": _decimal(self._value("rope.freq_base", 10_000.0)), "rope_type": "default"}
        kind = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        if kind in ("linear", "yarn"):
            out |= {"rope_type": kind, "factor": _decimal(self._value("rope.scaling.factor"))}
            if kind == "yarn":
                out["original_max_position_embeddings"] = int(self._value("rope.scaling.original_context_length"))
        elif kind != "none":
            raise UserError(f"{self.file}: rotary scaling {kind!r} is not supported; known are none, linear and yarn")
        if self._rope_factors is None:
            return out
        for factor, low, high, original in _LLAMA3_ROPES:
            expected = _llama3_factors(out["rope_theta"], head_dim, factor, low, high, original)
            if expected.shape == self._rope_factors.shape and np.allclose(expected, self._rope_factors, rtol=1e-3):
                values = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
                return out | values | {"rope_type": "llama3", "original_max_position_embeddings": original}
        raise UserError(f"{self.file}: {_FREQUENCIES} are not those of Llama 3, and others are not supported")


def open_gguf(file: Path) -> Gguf:
    """A GGUF file; the last one stays open, for its metadata take seconds to read.

    Raises:
      UserError: see `Gguf`.
    """
    try:
        file = file.resolve()
        state = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    return _open(file, state.st_size, state.st_mtime_ns)


@lru_cache(1)
def _open(file: Path, size: int, changed: int) -> Gguf:
    del size, changed  # of the state of the file that is kept
    return Gguf(file)


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-6, where the file has 9.99999997e-7."""
    return float(str(np.float32(value)))


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of transformers: its rotary embedding pairs i with i + d/2, llama.cpp's 2i with 2i + 1."""
    parts = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(values.shape)


def _llama3_factors(theta: float, head_dim: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What Llama 3 divides its rotary frequencies by."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, between))
