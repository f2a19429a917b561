"""Tokens of prompts and responses in the tokenizer's chat template, with the start and end of the response."""

import dataclasses
import datetime
import logging
import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.lm.messages import messages_of, readable

_log = logging.getLogger(__name__)

# On import transformers warns if PyTorch is missing. Its models are not used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Placeholders for the parts of a conversation when a template is analysed; no template contains them.
_FIRST, _LAST, _RESPONSE = "⟦first⟧", "⟦last⟧", "⟦response⟧"
_PROMPTS = 1 << 14  # prompts whose tokens are kept


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt and its response.

    Attributes:
      tokens: of the whole conversation.
      start, end: the response is tokens[start:end], with or without the end-of-turn token.
      head, tail: tokens[head:tail] are what the user wrote; before are the start of the text and the header of the
        turn, after is the header of the response.
    """

    tokens: list[int]
    start: int
    end: int
    head: int = 0
    tail: int = 0

    def cut_left(self, limit: int) -> "Encoded | None":
        """At most `limit` tokens: the first tokens of what the user wrote are left out.

        None if that is not enough.
        """
        over = max(len(self.tokens) - limit, 0)
        if over > self.tail - self.head:
            return None
        tokens = self.tokens[: self.head] + self.tokens[self.head + over :]
        return Encoded(tokens, self.start - over, self.end - over, self.head, self.tail - over)

    def cut_right(self, limit: int) -> "Encoded | None":
        """At most `limit` tokens: the end of the response is left out. None if no response would be left."""
        end = min(self.end, limit)
        return dataclasses.replace(self, tokens=self.tokens[:end], end=end) if end > self.start else None

    def cut(self, limit: int) -> "Encoded":
        """At most `limit` tokens, whatever is lost: first what the user wrote, then headers, then the response."""
        if short := self.cut_left(limit):
            return short
        short = self.cut_left(len(self.tokens) - (self.tail - self.head))
        assert short is not None
        over = min(len(short.tokens) - limit, max(short.start - 1, 0))
        return Encoded(short.tokens[over:][:limit], short.start - over, min(short.end - over, limit))


class ChatTokenizer:
    """A tokenizer with its chat template. A prompt is a text, or messages joined by `messages.join_messages`.

    The tokens of a conversation are the tokens of the prompt, from which generation starts, followed by those of the
    response, for any template: no token spans the boundary. The published code starts responses two tokens late.

    Text that contains the string of a special token is encoded as text, and counted in `spelled`.
    """

    def __init__(self, raw: Any, date: str = ""):
        """`date`, as YYYY-MM-DD, is what a template that asks for today's date gets; today by default."""
        self.raw = raw
        self.date = date or datetime.date.today().isoformat()
        self.spelled = 0
        self._template = self._with_date(getattr(raw, "chat_template", None))
        self._prompt = lru_cache(_PROMPTS)(self._encode_prompt)
        self._warned: set[str] = set()

    @property
    def dated(self) -> bool:
        """Whether the template asks for today's date."""
        return "strftime_now" in str(getattr(self.raw, "chat_template", None) or "")

    def frame(self, prompt: str) -> tuple[str, str]:
        """The text that the template puts before and after a response to the prompt.

        It is found by rendering a conversation whose answer is a placeholder, which works for any template. Without a
        template the text is the prompt, a blank line, the response and the end-of-sequence token; a warning says so
        once.
        """
        return self._frame(messages_of(prompt))

    def prompt(self, prompt: str) -> Encoded:
        """The tokens before a response to the prompt, from which generation starts; the response is empty."""
        return self._prompt(prompt)

    @cached_property
    def stop_tokens(self) -> list[int]:
        """Ids that end a response: the tokenizer's end of sequence, and the template's end of turn."""
        ids = [] if self.raw.eos_token_id is None else [int(self.raw.eos_token_id)]
        ending = next((i for i in self._ids(self.frame("?")[1]) if i in self.special), None)
        return ids if ending is None or ending in ids else [*ids, ending]

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special and added tokens, which do not occur in plain text."""
        return frozenset(self.raw.all_special_ids) | {int(i) for i in self.raw.added_tokens_decoder}

    def encode(self, prompt: str, response: str, *, end_of_turn: bool = True) -> Encoded:
        """Tokens of a conversation that ends with a response, and the place of the response in them.

        With `end_of_turn` the response includes the end-of-turn token, or the end-of-sequence token if the template
        has none.

        Raises:
          UserError: the response is empty.
        """
        if not response.strip():
            raise UserError(f"empty response to {readable(prompt)[:60]!r}; remove the row or fill it in")
        before, after = self.frame(prompt)
        start = self.prompt(prompt)
        if self._spells(response):
            said = self._ids(response, as_text=True)
            ids, number = said + self._ids(after), len(said)
        else:
            ids, number = self._continuation(before, start.tokens, response, after)
        if end_of_turn:
            number, ids = self._ended(ids, number)
        # Text that the template adds after the end of the turn is not part of the response.
        tokens = [*start.tokens, *ids[:number]]
        return dataclasses.replace(start, tokens=tokens, end=len(tokens))

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The texts of rows of tokens, without special tokens."""
        return self.raw.batch_decode(tokens, skip_special_tokens=True)

    def _ended(self, ids: list[int], number: int) -> tuple[int, list[int]]:
        """The number of tokens of the response with the token that ends it, and the tokens."""
        # Some templates put a space before the end-of-turn token: it belongs to the turn too.
        closing = next((i for i in range(number, len(ids)) if ids[i] in self.special), None)
        if closing is not None:
            return closing + 1, ids
        if not self.stop_tokens:
            self._warn("%s has no end token: responses end at the maximum length only", self.raw.name_or_path)
            return number, ids
        return number + 1, [*ids[:number], self.stop_tokens[0]]

    def _encode_prompt(self, prompt: str) -> Encoded:
        messages = messages_of(prompt)
        before, _ = self._frame(messages)
        if any([self._spells(message["content"]) for message in messages]):
            return self._spelled_prompt(messages, before)
        first, last = self._written(messages, before)
        ids, spans = self._ids_and_spans(before)
        head = next((i for i, (_, end) in enumerate(spans) if end > first), len(ids))
        tail = next((i for i, (start, _) in enumerate(spans) if start >= last), len(ids))
        return Encoded(ids, len(ids), len(ids), head, max(head, tail))

    def _spelled_prompt(self, messages: list[dict[str, str]], before: str) -> Encoded:
        """The tokens of a prompt with contents that spell special tokens: only the template's own are special."""
        marks = [f"⟦message {number}⟧" for number in range(len(messages))]
        marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        text, _ = self._frame(marked)
        parts = re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
        contents = {mark: message["content"] for mark, message in zip(marks, messages, strict=True)}
        if "".join(contents.get(part, part) for part in parts) != before:  # most templates strip what was written
            contents = {mark: content.strip() for mark, content in contents.items()}
        first = marks[self._first_written(messages)]
        ids, head, tail = list[int](), 0, 0
        for part in parts:
            head = len(ids) if part == first else head
            ids += self._ids(contents.get(part, part), as_text=part in contents)
            tail = len(ids) if part in contents else tail
        return Encoded(ids, len(ids), len(ids), head, tail)

    @staticmethod
    def _first_written(messages: list[dict[str, str]]) -> int:
        """The number of the first message that is not the system's."""
        return next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages) - 1)

    def _written(self, messages: list[dict[str, str]], before: str) -> tuple[int, int]:
        """Where in the text before a response what the user wrote begins and ends; system messages are before it."""
        number = self._first_written(messages)
        marked = [dict(message) for message in messages]
        marked[-1]["content"] = _LAST
        if number < len(messages) - 1:
            marked[number]["content"] = _FIRST
        text, _ = self._frame(marked)
        head = text.partition(_FIRST if number < len(messages) - 1 else _LAST)[0]
        tail = text.rpartition(_LAST)[2]
        if not before.startswith(head) or not before.endswith(tail) or len(head) + len(tail) > len(before):
            return 0, len(before)  # the template makes something else of this text
        return len(head), len(before) - len(tail)

    def _frame(self, messages: list[dict[str, str]]) -> tuple[str, str]:
        raw = self.raw
        if not getattr(raw, "chat_template", None):
            self._warn(
                "%s has no chat template: texts are the prompt, a blank line, the response and the end token",
                raw.name_or_path,
            )
            prompt = "\n\n".join(message["content"] for message in messages)
            first = raw.bos_token or ""
            return (f"{first}{prompt}\n\n" if prompt else first), raw.eos_token or ""
        conversation = [*messages, {"role": "assistant", "content": _RESPONSE}]
        try:
            text = raw.apply_chat_template(conversation, chat_template=self._template, tokenize=False)
        except Exception as error:  # a template is a program and may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{raw.name_or_path}: the chat template cannot be used ({reason})") from error
        before, found, after = text.rpartition(_RESPONSE)
        if not found:
            raise UserError(
                "the chat template leaves out what the assistant says; it cannot be used to score responses"
            )
        return before, after

    def _with_date(self, template: Any) -> str | None:
        """The template with the date in place of its calls of strftime_now; None to use the tokenizer's own."""
        if not isinstance(template, str) or "strftime_now" not in template:
            return None
        date = datetime.datetime.fromisoformat(self.date)
        return re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(date.strftime(call[2])), template)

    def _continuation(self, before: str, prompt: list[int], response: str, after: str) -> tuple[list[int], int]:
        """Tokens of a response and what follows it, to be put after the tokens of the prompt; and how many it has.

        The whole text is tokenised at once, as a model reads it. If its tokens do not begin with those of the prompt,
        or if a token spans the boundary, the response is tokenised after another text, at whose end tokens divide.
        Some tokenizers put a space in front of a text that stands alone.
        """
        whole = self._ids_and_spans(before + response + after)
        found = _after(whole, len(before), len(response))
        if found and [*prompt, *found[0]] == whole[0]:
            return found
        wanted, options = self.raw.decode(whole[0], skip_special_tokens=False), []
        for other in ("", "\n", *self.raw.all_special_tokens):
            if found := _after(self._ids_and_spans(other + response + after), len(other), len(response)):
                options.append(found)
                if self.raw.decode([*prompt, *found[0]], skip_special_tokens=False) == wanted:
                    return found
        if not options:
            raise UserError(f"{self.raw.name_or_path}: has no token for the response {response[:60]!r}")
        return options[0]

    @cached_property
    def _special_texts(self) -> re.Pattern[str]:
        texts = {str(token.content) for token in self.raw.added_tokens_decoder.values() if token.special}
        texts |= set(self.raw.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

    def _spells(self, text: str) -> bool:
        found = self._special_texts.search(text)
        if found:
            self.spelled += 1
            self._warn("a text contains the string of the special token %r: it is encoded as text", found[0])
        return bool(found)

    def _ids(self, text: str, as_text: bool = False) -> list[int]:
        return self.raw(text, add_special_tokens=False, split_special_tokens=as_text)["input_ids"]

    def _ids_and_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        out = self.raw(text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=False)
        return out["input_ids"], out["offset_mapping"]

    def _warn(self, message: str, *values: Any) -> None:
        """Logs a warning once."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message, *values)


def load_tokenizer(directory: Path, date: str = "") -> ChatTokenizer:
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
    return ChatTokenizer(tokenizer, date)


def check_vocabulary(tokenizer: ChatTokenizer, vocabulary: int, directory: Path) -> None:
    """Raises `UserError` if the tokenizer has ids without an embedding in the model."""
    largest = max(tokenizer.raw.get_vocab().values())
    if largest >= vocabulary:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {largest}, the model {vocabulary} embeddings; "
            "give the tokenizer that belongs to the model"
        )


def _after(whole: tuple[list[int], list[tuple[int, int]]], begin: int, length: int) -> tuple[list[int], int] | None:
    """The tokens from a place in the text on, and how many hold the next `length` characters.

    None if a token spans the place.
    """
    ids, spans = whole
    first = next((i for i, (_, end) in enumerate(spans) if end > begin), None)
    if first is None or spans[first][0] < begin:
        return None
    inside = (i for i, (start, end) in enumerate(spans) if end > begin and start < begin + length and end > start)
    last = max(inside, default=-1)
    if last < first:
        return None
    return ids[first:], last + 1 - first
