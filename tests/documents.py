"""What the Markdown files of the repository say that can be checked: blocks of code, commands, settings, links."""

import dataclasses
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("[bd]*/*.md")])

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s#\s.*$|^#\s.*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its language, the other words after the fence, and its first line in the file."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def read(file: str) -> str:
    """The text of a document."""
    return (ROOT / file).read_text(encoding="utf-8")


def blocks(file: str, *languages: str) -> list[Block]:
    """The fenced blocks of a document, of these languages alone if any are named."""
    text = read(file)
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match[1].split() or [""]
        if not languages or language in languages:
            found.append(Block(language, tuple(words), match[2], text.count("\n", 0, match.start()) + 2))
    return found


def prose(file: str) -> str:
    """A document without its fenced blocks."""
    return _FENCE.sub("", read(file))


def commands(file: str) -> Iterator[list[str]]:
    """Every shell command of a document as words: those of bash blocks, and those that stand in the text."""
    for block in blocks(file, "bash"):
        yield from _split(block.text)
    for code in re.findall(r"`((?:python -m|launch/)[^`]+)`", prose(file)):
        yield from _split(code)


def _split(text: str) -> Iterator[list[str]]:
    for line in _COMMENT.sub("", text.replace("\\\n", " ")).splitlines():
        for command in line.split("&&"):
            words = shlex.split(re.sub(r"\s>\s*\S+$", "", command.rstrip()))  # without what it is written to
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def settings_named(file: str) -> set[tuple[str, ...]]:
    """The settings that a document names, as config.train.steps or --config.train.steps=3."""
    found = re.findall(r"(?<![\w/.])config((?:\.[a-z]\w*)+)", read(file))
    keys = {tuple(key[1:].split(".")) for key in found}
    return {key for key in keys if key[0] not in ("json", "md", "py")}


def has_setting(kind: object, key: tuple[str, ...]) -> bool:
    """Whether a dataclass, or one of a union of them, has this field."""
    options = [kind, *typing.get_args(kind)]
    if not key:
        return True
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            hints = typing.get_type_hints(option)
            if key[0] in hints and has_setting(hints[key[0]], key[1:]):
                return True
    return False


def files_named(file: str) -> set[str]:
    """Files and directories of the repository that a document names."""
    rooms = r"(?:fssa_jax|launch|configs|benchmarks|tests|docs)"
    return set(re.findall(rf"(?<![\w/.]){rooms}/[\w/]*(?:\w+\.(?:py|sh|md|png|yml)\b|/)", read(file)))


def links(file: str) -> list[tuple[str, str]]:
    """(file, anchor) of every link to another place of the repository; "" for this file and for no anchor."""
    found = re.findall(r"""(?:\]\(|src=")(?!https?:)([^)#"\s]*)(?:#([^)"\s]*))?[)"]""", prose(file))
    return [(str((ROOT / file).parent / path) if path else str(ROOT / file), anchor) for path, anchor in found]


def anchors(path: str) -> set[str]:
    """What GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", Path(path).read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
