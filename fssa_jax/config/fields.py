"""Building blocks of configurations: dataclasses whose fields check words and ranges, to JSON and back."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fssa_jax.errors import UserError
from fssa_jax.files import with_checksum, without_checksum

_LARGEST = 2**53  # whole numbers from here on are not exact as floats, and no size or count of anything


def number(
    default: float,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> Any:
    """A field whose value is a finite number with least ≤ x ≤ most and above < x < below."""
    return dataclasses.field(default=default, metadata={"range": (least, above, most, below)})


def positive(default: float) -> Any:
    """A field whose value is a number above 0."""
    return number(default, above=0)


def group(kind: Any) -> Any:
    """A field whose value is a dataclass of settings, `kind()` by default."""
    return dataclasses.field(default_factory=kind)


def fields_of(kind: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """The fields of a dataclass with their types."""
    hints = typing.get_type_hints(kind)
    return ((field, hints[field.name]) for field in dataclasses.fields(kind))


def kinds_of(hint: Any) -> tuple[type, ...]:
    """The dataclasses that a field may hold: several for a union such as `Film | LoraCore`, () for a plain value."""
    if item_of(hint) is not None:
        return ()
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    return tuple(option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type))


def item_of(hint: Any) -> type | None:
    """The dataclass whose instances a field lists, such as `Part` for `tuple[Part, ...]`; else None."""
    item = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    return item if dataclasses.is_dataclass(item) and isinstance(item, type) else None


def all_kinds(*kinds: type) -> list[type]:
    """The dataclasses of settings, and all dataclasses that their fields may hold, each once."""
    found: list[type] = []
    for kind in kinds:
        if kind not in found:
            found.append(kind)
            hints = [hint for _, hint in fields_of(kind)]
            listed = [item for item in map(item_of, hints) if item is not None]
            inside = all_kinds(*(inner for hint in hints for inner in kinds_of(hint)), *listed)
            found += [inner for inner in inside if inner not in found]
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values, with every field; a field with several possible kinds stores its "kind"."""
    out: dict[str, Any] = {}
    for field, hint in fields_of(type(config)):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tag = {"kind": type(value).__name__} if isinstance(hint, types.UnionType) else {}
            out[field.name] = tag | to_dict(value)
        else:
            out[field.name] = list(map(_as_plain, value)) if isinstance(value, tuple) else value
    return out


def _as_plain(item: Any) -> Any:
    return to_dict(item) if dataclasses.is_dataclass(item) else item


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of `to_dict` as a flat dictionary with dotted keys."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def to_json(config: Any) -> str:
    """An experiment as JSON text: `to_dict`, the name of its class, and a checksum."""
    return json.dumps(with_checksum({"kind": type(config).__name__} | to_dict(config)), indent=2)


def from_dict(kind: type, values: dict[str, Any], place: str = "config") -> Any:
    """A dataclass from plain values, all checked.

    Raises:
      UserError: an unknown key, or a value of the wrong type, word or range; the message names the key.
    """
    known = {field.name: (field, hint) for field, hint in fields_of(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{place}.{unknown[0]}: unknown key; known are {', '.join(sorted(known))}")
    return kind(**{name: _checked(*known[name], value, f"{place}.{name}") for name, value in values.items()})


def check_fields(config: Any) -> None:
    """Raises `UserError` for a value that its field does not allow, naming the key."""
    _check_kinds(config, "config")
    from_dict(type(config), to_dict(config))


def _check_kinds(config: Any, place: str) -> None:
    for field, hint in fields_of(type(config)):
        value, kinds = getattr(config, field.name), kinds_of(hint)
        if not dataclasses.is_dataclass(value):
            continue
        if type(value) not in kinds:
            known = ", ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{place}.{field.name}: must be one of {known}; got {type(value).__name__}")
        _check_kinds(value, f"{place}.{field.name}")


def read_json(path: Path, sealed: bool = False) -> Any:
    """The content of a config.json, unchecked.

    Args:
      path: the file.
      sealed: it must have a checksum; see `files.with_checksum`.

    Raises:
      UserError: it is not a JSON object, or was changed.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not JSON ({error}); restore it, or train into a new workdir") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; restore it, or train into a new workdir")
    if not sealed:
        return values
    if "crc32" not in values:
        raise UserError(f"{path}: written by another version of fssa_jax; train again, into a new work directory")
    try:
        return without_checksum(values)
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or train into a new workdir") from error


def first_difference(old: Any, new: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first setting in which two configurations differ; None if they are equal."""
    for name in [*new, *(n for n in old if n not in new)]:
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := first_difference(a, b, f"{prefix}{name}."):
                return found
        elif a != b:
            return f"{prefix}{name}", a, b
    return None


def _checked(field: dataclasses.Field, hint: Any, value: Any, place: str) -> Any:
    if kinds := kinds_of(hint):
        return _group(kinds, hint, value, place)
    value = _plain(hint, value, place)
    if limits := field.metadata.get("range"):
        least, above, most, below = limits
        if not (least <= value <= most and above < value < below and math.isfinite(value)):
            wanted = [f"{sign} {limit:g}" for sign, limit in zip("≥>≤<", limits, strict=True) if math.isfinite(limit)]
            raise UserError(f"{place}: must be {' and '.join(wanted) or 'finite'}, got {value}")
    return value


def _group(kinds: tuple[type, ...], hint: Any, value: Any, place: str) -> Any:
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    if not isinstance(value, dict):
        raise UserError(f"{place}: must be a group of settings, got {value!r}")
    if not isinstance(hint, types.UnionType):
        return from_dict(kinds[0], value, place)
    values = dict(value)
    name = values.pop("kind", None)
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise UserError(f"{place}.kind: must be one of {', '.join(k.__name__ for k in kinds)}; got {name!r}")
    return from_dict(kind, values, place)


def _plain(hint: Any, value: Any, place: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UserError(f"{place}: must be a list; got {value!r}")
        if kind := item_of(hint):
            return tuple(_group((kind,), kind, v, f"{place}[{i}]") for i, v in enumerate(value))
        return tuple(_plain(item, v, place) for v in value)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{place}: must be one of {', '.join(typing.get_args(hint))}; got {value!r}")
        return value
    if hint in (int, float) and isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LARGEST:
        raise UserError(f"{place}: {str(value)[:40]} is too large")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{place}: must be {hint.__name__}; got {value!r}")
    return value
