"""What a sentence-transformers checkpoint does around its BERT: pooling, default prompt, case and length limit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.models.bert import POOLS, Pooling

# Names of the poolings in the two spellings of the library; None for those that are not supported.
_FLAGS: dict[str, Pooling | None] = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": None,
    "lasttoken": None,
}
_IGNORED = ("Normalize",)  # vectors are scaled by a setting of their own


@dataclasses.dataclass(frozen=True)
class SentenceModules:
    """How a sentence encoder makes a vector of a text.

    Attributes:
      transformer: directory of the BERT.
      pools: poolings over tokens, whose results are concatenated.
      prompt: put in front of every text.
      lower: whether texts are lower-cased first.
      limit: maximum tokens of a text, if the checkpoint states one.
    """

    transformer: Path
    pools: tuple[Pooling, ...] = ("mean",)
    prompt: str = ""
    lower: bool = False
    limit: int | None = None


def read_sentence_modules(directory: Path) -> SentenceModules:
    """Reads modules.json and the files of the modules that it lists; mean pooling without such files.

    Raises:
      UserError: a module or a pooling that is not supported, by name; or a damaged file.
    """
    parts, pooling = {"Transformer": directory}, directory / "1_Pooling"
    if (directory / "modules.json").is_file():
        for module in _read(directory / "modules.json", list):
            if not isinstance(module, dict) or not isinstance(module.get("type"), str):
                raise UserError(f"{directory / 'modules.json'}: damaged; download it again")
            kind = module["type"].rsplit(".", 1)[-1]
            parts[kind] = directory / str(module.get("path", ""))
            if kind not in ("Transformer", "Pooling", *_IGNORED):
                raise UserError(f"{directory}: the module {kind} of this sentence encoder is not supported")
        if "Pooling" not in parts:
            raise UserError(f"{directory}: modules.json lists no Pooling, so it is no encoder of sentences")
        pooling = parts["Pooling"]
    settings = _read(parts["Transformer"] / "sentence_bert_config.json", dict)
    limit = settings.get("max_seq_length")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UserError(f"{parts['Transformer'] / 'sentence_bert_config.json'}: max_seq_length is {limit!r}; fix it")
    prompt = _default_prompt(directory)
    pools, with_prompt = _pools(pooling / "config.json")
    if prompt and not with_prompt:
        raise UserError(f"{directory}: leaves its default prompt out of the pooling, which is not supported")
    return SentenceModules(parts["Transformer"], pools, prompt, bool(settings.get("do_lower_case")), limit)


def _pools(file: Path) -> tuple[tuple[Pooling, ...], bool]:
    """The poolings, in the order in which their results are concatenated; and whether they include the prompt."""
    modes = _read(file, dict)
    named = modes.get("pooling_mode", [])
    names = [named] if isinstance(named, str) else named
    if not names:
        flagged = [name for name in _FLAGS if modes.get(f"pooling_mode_{name}")]
        known = any(key.startswith("pooling_mode_") for key in modes)
        names = [_FLAGS[name] or name for name in flagged] if known else ["mean"]
    unknown = [name for name in names if name not in POOLS] if isinstance(names, list) and names else ["none"]
    if unknown:
        raise UserError(f"{file}: pooling {unknown[0]!r} is not supported; known are {', '.join(POOLS)}")
    return tuple(pool for pool in POOLS if pool in names), bool(modes.get("include_prompt", True))


def _default_prompt(directory: Path) -> str:
    file = directory / "config_sentence_transformers.json"
    settings = _read(file, dict)
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise UserError(f"{file}: has no prompt of the name {name!r}; fix it")
    return prompts[name]


def _read(file: Path, kind: type) -> Any:
    """The content of a JSON file; an empty one of this kind if there is no such file."""
    if not file.is_file():
        return kind()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); download it again") from error
    if not isinstance(content, kind):
        raise UserError(f"{file}: damaged (not a JSON {'list' if kind is list else 'object'}); download it again")
    return content
