"""Tokens of prompts and responses in the tokenizer's chat template, with the start and end of the response."""

import dataclasses
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError

_log = logging.getLogger(__name__)

# On import transformers warns if PyTorch is missing. Its models are not used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Placeholder for the response when a template is analysed; no template contains it.
_MARK = "⟦response⟧"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt and its response. The response is tokens[start:end], with or without the end-of-turn token."""

    tokens: list[int]
    start: int
    end: int


def load_tokenizer(directory: Path) -> Any:
    """Loads the fast tokenizer of a checkpoint, without executing code from the checkpoint.

    Raises:
      UserError: the directory has no fast tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, use_fast=True)
    except Exception as error:  # the library raises many kinds, all of them about this directory
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{directory}: no tokenizer that can be read ({reason})") from error
    if not tokenizer.is_fast:
        raise UserError(f"{directory}: the tokenizer has no tokenizer.json; save it with transformers as a fast one")
    return tokenizer


def check_vocabulary(tokenizer: Any, vocabulary: int, directory: Path) -> None:
    """Raises `UserError` if the tokenizer has ids without an embedding in the model."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {largest}, the model {vocabulary} embeddings; "
            "give the tokenizer that belongs to the model"
        )


def frame(tokenizer: Any, prompt: str) -> tuple[str, str]:
    """The text that the template puts before and after a response to the prompt.

    It is found by rendering a conversation whose answer is a placeholder, which works for any template. Without a
    template the text is the prompt, a blank line, the response and the end-of-sequence token; a warning says so once.
    """
    if not getattr(tokenizer, "chat_template", None):
        _say_fallback(str(tokenizer.name_or_path))
        first = tokenizer.bos_token or ""
        return (f"{first}{prompt}\n\n" if prompt else first), tokenizer.eos_token or ""
    conversation = [{"role": "user", "content": prompt}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
    except Exception as error:  # a template is a program and may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{tokenizer.name_or_path}: the chat template cannot be used ({reason})") from error
    before, found, after = text.rpartition(_MARK)
    if not found:
        raise UserError("the chat template leaves out what the assistant says; it cannot be used to score responses")
    return before, after


@cache
def _say_fallback(name: str) -> None:
    _log.warning("%s has no chat template: texts are the prompt, a blank line, the response and the end token", name)


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens before a response to the prompt, from which generation starts."""
    return tokenizer(frame(tokenizer, prompt)[0], add_special_tokens=False)["input_ids"]


def stop_tokens(tokenizer: Any) -> list[int]:
    """Ids that end a response: the tokenizer's end of sequence, and the template's end of turn."""
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    after = tokenizer(frame(tokenizer, "?")[1], add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    ending = next((int(i) for i in after if i in special), None)
    return ids if ending is None or ending in ids else [*ids, ending]


def encode(
    tokenizer: Any, prompt: str, response: str, *, end_of_turn: bool = True, special: frozenset[int] | None = None
) -> Encoded:
    """Tokens of a conversation of two turns, and the place of the response in them.

    The whole text is tokenised at once, as a model reads it. The response begins at the first token that holds one of
    its characters (the published code starts two tokens late), and ends after its last one, or after the end-of-turn
    token. `special` are the tokenizer's `special_ids`; callers with many texts look them up once.

    Raises:
      UserError: the response is empty, or consists only of characters that the template strips.
    """
    before, after = frame(tokenizer, prompt)
    if not response.strip():
        raise UserError(f"empty response to {prompt[:60]!r}; remove the row or fill it in")
    text = before + response + after
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = out["input_ids"], out["offset_mapping"]
    begin, stop = len(before), len(before) + len(response)
    inside = [i for i, (a, b) in enumerate(spans) if b > begin and a < stop and b > a]
    start, end = inside[0], inside[-1] + 1
    if end_of_turn:
        # Some templates put a space before the end-of-turn token: it belongs to the turn too.
        special = special_ids(tokenizer) if special is None else special
        closing = next((i for i in range(end, len(ids)) if ids[i] in special), None)
        end = end if closing is None else closing + 1
    # Text that the template adds after the end of the turn is not part of the response.
    return Encoded(list(ids[:end]), start, end)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of special and added tokens, which do not occur in plain text."""
    return frozenset(tokenizer.all_special_ids) | {int(i) for i in tokenizer.added_tokens_decoder}
