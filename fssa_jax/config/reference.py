"""Generates docs/config.md: every setting, with its default, allowed values and meaning.

python -m fssa_jax.config.reference > docs/config.md
"""

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import typing
from typing import Any

from fssa_jax.config.experiment import KINDS
from fssa_jax.config.fields import all_kinds, fields_of, item_of, kinds_of

_HEAD = """# Every setting

Generated from the dataclasses in `fssa_jax/config/` by `python -m fssa_jax.config.reference > docs/config.md`.

A file in `configs/` returns one of these: {experiments}.
A flag sets one key, such as `--config.optim.learning_rate=3e-4`; keys of nested groups are joined by dots.
If a key is a group of settings, the table links the section with its keys.
Some groups have several kinds. The file in `configs/` chooses the kind, and flags set the keys of that kind.
In the `config.json` of a work directory such a group stores its `kind` next to its keys.
"""


def meanings(kind: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass, inherited ones included, by field name."""
    out: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for node, after in itertools.pairwise(definition.body):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    text = after.value if isinstance(after, ast.Expr) else None
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        out[node.target.id] = " ".join(text.value.split())
    return out


def markdown() -> str:
    """The text of docs/config.md."""
    head = _HEAD.format(experiments=", ".join(map(_link, KINDS)))
    return "\n".join([head, *(_section(kind) for kind in all_kinds(*KINDS))])


def _section(kind: type) -> str:
    lines = [f"## {kind.__name__}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    default, said = kind(), meanings(kind)
    rows = [
        [f"`{field.name}`", _default(getattr(default, field.name)), _allowed(field, hint), said.get(field.name, "")]
        for field, hint in fields_of(kind)
    ]
    if rows:
        table = [["key", "default", "allowed", "meaning"], ["---"] * 4, *rows]
        lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table] + [""]
    return "\n".join(lines)


def _default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return _link(type(value))
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`".replace("'", '"')


def _allowed(field: dataclasses.Field, hint: Any) -> str:
    groups = kinds_of(hint)
    if groups:
        return ", ".join(map(_link, groups))
    if item := item_of(hint):
        return f"several {_link(item)}"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = arguments[0]
        words = typing.get_args(inner)
        return f"some of {', '.join(f'`{word}`' for word in words)}" if words else f"several {inner.__name__}"
    if origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if hint is bool:
        return "`true`, `false`"
    if limits := field.metadata.get("range"):
        parts = [f"{sign} {limit:.10g}" for sign, limit in zip("≥>≤<", limits, strict=True) if math.isfinite(limit)]
        return f"{hint.__name__} {' and '.join(parts)}".strip()
    return "text" if hint is str else hint.__name__


def _link(kind: type) -> str:
    return f"[{kind.__name__}](#{kind.__name__.lower()})"


if __name__ == "__main__":
    print(markdown(), end="")
