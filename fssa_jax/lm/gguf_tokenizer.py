"""The fast tokenizer of a GGUF file, from its tokens, their types, and merges or scores.

Byte-level BPE ("gpt2"): a file names how text is cut into words before the merges and does not describe it, so the
names are listed here. SentencePiece ("llama"): a file has scores instead of merges; the merges are all pairs of tokens
that make a token, those of the highest score first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # types of tokens

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NAMES = {
    "gpt2": ("gpt-2", "mpt", "olmo", "jina-es", "jina-de", "phi-2"),
    "digits": ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "llama3": ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3"),
    "qwen2": ("qwen2", "deepseek-r1-qwen", "megrez"),
}
PRE_TOKENIZERS = {name: kind for kind, names in _NAMES.items() for name in names}
"""What is known of the names in tokenizer.ggml.pre."""


def tokenizer_of(metadata: dict[str, Any], file: Path) -> Any:
    """A `PreTrainedTokenizerFast` with the chat template of the file, if there is one.

    Raises:
      UserError: the kind of tokenizer or its pre-tokenizer is not known, or the tokens are incomplete.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    def value(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    kind, tokens = value("model"), value("tokens")
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{file}: tokenizer {kind!r} is not supported; known are gpt2 and llama (SentencePiece)")
    if not tokens or len(set(tokens)) < len(tokens):
        raise UserError(f"{file}: tokens are missing or not distinct; download it again")
    types = value("token_type") or [1] * len(tokens)
    wanted = value("merges") if kind == "gpt2" else value("scores")
    if wanted is None or len(types) != len(tokens) or (kind == "llama" and len(wanted) != len(tokens)):
        what = "merges" if kind == "gpt2" else "scores"
        raise UserError(f"{file}: {what} or types of tokens are missing or incomplete; download it again")
    if kind == "gpt2":
        raw = _byte_level(tokens, wanted, value("pre"), file)
    else:
        raw = _sentence_piece(tokens, wanted, types, bool(value("add_space_prefix", True)))
    for special in (True, False):
        sort = _CONTROL if special else _USER_DEFINED
        added = [t for t, of in zip(tokens, types, strict=True) if of == sort or (special and of == _UNKNOWN)]
        raw.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    named = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = value(f"{ours}_token_id")
        if number is not None and 0 <= number < len(tokens):
            named[f"{theirs}_token"] = tokens[number]
    out = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
    out.chat_template = metadata.get("tokenizer.chat_template")
    return out


def _byte_level(tokens: Sequence[str], merges: Sequence[str], name: str | None, file: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    kind = PRE_TOKENIZERS.get(name or "")
    if kind is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UserError(f"{file}: pre-tokenizer {name!r} is not known, so words may be cut wrongly; known are {known}")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    numbers = {token: i for i, token in enumerate(tokens)}
    odd = next((pair for pair in pairs if not all(part in numbers for part in (*pair, "".join(pair)))), None)
    if odd is not None:
        raise UserError(f"{file}: the merge {' '.join(odd)!r} is not of tokens; download it again")
    raw = Tokenizer(models.BPE(numbers, pairs, fuse_unk=False, byte_fallback=False, ignore_merges=kind == "llama3"))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt2", "digits"))
    first: list[Any] = []
    if kind == "digits":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif kind in ("llama3", "qwen2"):
        words = _WORDS % (r"\p{N}{1,3}" if kind == "llama3" else r"\p{N}")
        first = [pre_tokenizers.Split(Regex(words), "isolated")]
    raw.pre_tokenizer = pre_tokenizers.Sequence([*first, by_bytes])  # type: ignore[assignment]
    if kind == "qwen2":
        raw.normalizer = normalizers.NFC()  # type: ignore[assignment]
    raw.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    raw.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    return raw


def _sentence_piece(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    numbers = {token: i for i, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    merges = _merges(numbers, scores, types)
    raw = Tokenizer(models.BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in types))
    spaces = normalizers.Replace(" ", "▁")
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces  # type: ignore[assignment]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])  # type: ignore[assignment]
    return raw


def _merges(numbers: dict[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token: those of the highest score first, then by the ids of the parts."""
    found = []
    for token, number in numbers.items():
        if types[number] in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = numbers.get(token[:cut]), numbers.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], number, left, right))
    names = list(numbers)
    return [(names[left], names[right]) for _, _, left, right in sorted(found)]
