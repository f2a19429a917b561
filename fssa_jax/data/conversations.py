"""Pairs of whole conversations, `chosen` and `rejected`: the prompt is what they share."""

import re
from collections.abc import Sequence
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.lm.messages import join_messages

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def split_pair(prompt: Any, chosen: Any, rejected: Any, place: str) -> tuple[str, str, str]:
    r"""(prompt, chosen response, rejected response) of a pair in one of TRL's forms.

    Texts with a prompt are responses. Without a prompt they are transcripts in the form of HH-RLHF, or share a
    beginning. Lists of messages may repeat the prompt, and may end with turns of the user, which are left out.

    Raises:
      UserError: another form; conversations that differ before the last response; an empty response, or equal ones.

    >>> from fssa_jax.data.conversations import split_pair
    >>> split_pair(None, "\n\nHuman: Hi\n\nAssistant: Hey", "\n\nHuman: Hi\n\nAssistant: Yes?", "row 1")
    ('Hi', 'Hey', 'Yes?')
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return _checked(_before(prompt, place), chosen, rejected, place)
        pair = [_transcript(text) for text in (chosen, rejected)]
        if not all(pair):
            return _checked(*_shared_beginning(chosen, rejected, place), place)
        chosen, rejected = pair
    if not (_are_messages(chosen) and _are_messages(rejected)):
        raise UserError(f"{place}: columns 'chosen' and 'rejected' must both be texts, or both lists of messages")
    given: Sequence[dict[str, str]] = []
    if prompt:
        given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not _are_messages(given):
            raise UserError(f"{place}: column 'prompt' must be a text or a list of messages")
    conversations: tuple[Any, Any] = (chosen, rejected)
    sides = [_whole(given, list(messages), place) for messages in conversations]
    if sides[0][:-1] != sides[1][:-1]:
        raise UserError(f"{place}: 'chosen' and 'rejected' differ before the last response; leave the row out")
    before = join_messages(sides[0][:-1], f"{place}: column 'chosen'")
    return _checked(before, sides[0][-1]["content"], sides[1][-1]["content"], place)


def prompt_is_implicit(values: Any) -> bool:
    """Whether the prompt of a row can only be told from the beginning that its two texts share.

    >>> from fssa_jax.data.conversations import prompt_is_implicit
    >>> prompt_is_implicit({"chosen": "Q: Hi\nHello", "rejected": "Q: Hi\nYes?"})
    True
    """
    sides = [values.get(name) for name in ("chosen", "rejected")]
    return values.get("prompt") is None and all(isinstance(text, str) and not _transcript(text) for text in sides)


def _before(prompt: Any, place: str) -> str:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list | tuple):
        raise UserError(f"{place}: column 'prompt' must be a text or a list of messages")
    return join_messages(messages, f"{place}: column 'prompt'")


def _whole(given: Sequence[dict[str, str]], messages: list[dict[str, str]], place: str) -> list[dict[str, str]]:
    """The messages of a conversation up to the last response, with the given prompt in front unless it is repeated."""
    plain, before = (
        [{"role": message.get("role", ""), "content": message.get("content", "")} for message in side]
        for side in (messages, given)
    )
    repeated = [number for number in range(len(plain)) if plain[number : number + len(before)] == before]
    if not repeated and any(message["role"] == "user" for message in plain[:1]):
        raise UserError(f"{place}: the conversations begin with another prompt than column 'prompt'; leave one out")
    plain = plain if repeated else before + plain
    while plain and plain[-1]["role"] != "assistant":  # what the user says afterwards
        plain.pop()
    if len(plain) < 2 or not isinstance(plain[-1]["content"], str):
        raise UserError(f"{place}: a conversation without a prompt and a response of the assistant")
    return plain


def _transcript(text: str) -> list[dict[str, str]] | None:
    """The messages of a transcript with turns of a Human and an Assistant; None if it is none."""
    parts = _TURN.split(text)
    if len(parts) < 3 or parts[0].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": said.strip()} for who, said in turns]


def _shared_beginning(chosen: str, rejected: str, place: str) -> tuple[str, str, str]:
    """What two texts begin with, and the rest of each: whole lines, or words if the first lines differ.

    Responses may begin alike, so words of the first line that differs belong to them.
    """
    number = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    number = min(len(chosen), len(rejected)) if number is None else number
    ends = [match for match in re.finditer(r"\s+", chosen[:number])]
    lines = [match for match in ends if "\n" in match.group() and chosen[: match.start()].strip()]
    end = (lines or ends)[-1].end() if ends else 0
    prompt, rest = chosen[:end].strip(), (chosen[end:].strip(), rejected[end:].strip())
    if not all(rest):
        raise UserError(f"{place}: one of 'chosen' and 'rejected' is the beginning of the other; leave the row out")
    return join_messages([{"role": "user", "content": prompt}], place), *rest


def _checked(prompt: str, chosen: str, rejected: str, place: str) -> tuple[str, str, str]:
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise UserError(f"{place}: column {name!r} is empty; remove the row or fill it in")
    if chosen == rejected:
        raise UserError(f"{place}: columns 'chosen' and 'rejected' are identical; remove the row")
    return prompt, chosen, rejected


def _are_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(message, dict) for message in value)
