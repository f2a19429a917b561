"""Prompts that are conversations: a list of messages as one text that can be stored and compared like any prompt."""

import json
from collections.abc import Sequence
from typing import Any

from fssa_jax.errors import UserError

ROLES = ("system", "user", "assistant")

# No text begins with this control character; `join_messages` wraps one that does.
_MARK = "\x1e"


def join_messages(messages: Sequence[Any], place: str = "prompt") -> str:
    r"""One text for a list of messages, from which `messages_of` gets them back. One user message is its own text.

    Args:
      messages: `{"role": "system" | "user" | "assistant", "content": text}` each; the last is the user's.
      place: named in errors.

    Raises:
      UserError: no messages, something that is not a message, or the last one is not the user's.

    >>> from fssa_jax.lm.messages import join_messages, messages_of
    >>> join_messages([{"role": "user", "content": "And chess?"}])
    'And chess?'
    >>> turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And chess?"}]
    >>> messages_of(join_messages(turns)) == turns
    True
    """
    pairs = [_pair(message, f"{place}: message {number}") for number, message in enumerate(messages)]
    if not pairs or pairs[-1][0] != "user":
        last = f"the last one is of role {pairs[-1][0]!r}" if pairs else "there are none"
        raise UserError(f"{place}: messages must end with one of role 'user', but {last}")
    if len(pairs) == 1 and not pairs[0][1].startswith(_MARK):
        return pairs[0][1]
    return _MARK + json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt; a plain text is one message of the user."""
    if not prompt.startswith(_MARK):
        return [{"role": "user", "content": prompt}]
    return [{"role": role, "content": content} for role, content in json.loads(prompt[1:])]


def readable(prompt: str) -> str:
    """A prompt for people and sentence encoders: the messages with their roles in front; a plain text as it is."""
    if not prompt.startswith(_MARK):
        return prompt
    messages = messages_of(prompt)
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def _pair(message: Any, place: str) -> tuple[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise UserError(f"{place}: must be an object with 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UserError(f"{place}: 'role' must be {', '.join(ROLES)}; got {str(role)[:40]!r}")
    if not isinstance(content, str):
        raise UserError(f"{place}: 'content' must be a text, got a {type(content).__name__}")
    return role, content
