"""From ``--set`` pairs and a preset to a config: typed, with the nearest name for a key that is not there."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.train.recipes.base import groups


def resolve(default: Any, presets: Mapping[str, Any], pairs: Iterable[str]) -> Any:
    """``default`` or the preset that the pairs name, with every other pair ("batch.rows=32") set on it, in order.

    ZambaError for an unknown preset or key (with the nearest one) and for a value of the wrong kind.
    """
    given = [_split(pair) for pair in pairs]
    config = default
    for path, text in given:
        if path == "preset":
            if text not in presets:
                raise ZambaError(f"unknown preset {text!r}{nearest(text, presets)}, expected one of {', '.join(presets)}")
            config = replace(presets[text], preset=text)
    for path, text in given:
        if path != "preset":
            config = assign(config, path, text)
    return config


def _split(pair: str) -> tuple[str, str]:
    path, equals, text = pair.partition("=")
    if not (path and equals):
        raise ZambaError(f"--set {pair!r}: expected KEY=VALUE, such as batch.rows=32")
    return path.strip(), text.strip()


def assign(config: Any, path: str, text: str) -> Any:
    """``config`` with the field at the dotted ``path`` set to what ``text`` says."""
    return _assign(config, path.split("."), text, path, root=config)


def _assign(config: Any, keys: list[str], text: str, path: str, root: Any) -> Any:
    key, rest = keys[0], keys[1:]
    if key not in {one.name for one in fields(config)}:
        raise _unknown(path, root)
    value, hint = getattr(config, key), get_type_hints(type(config))[key]
    if is_dataclass(value):
        if not rest:
            inside = ", ".join(f"{path}.{one.name}" for one in fields(value))
            raise ZambaError(f"--set {path}={text}: {path} is a group; set one of {inside}")
        return replace(config, **{key: _assign(value, rest, text, path, root)})
    if get_origin(hint) is dict and rest:
        inner = convert(text, get_args(hint)[1], path)
        return replace(config, **{key: {**value, ".".join(rest): inner}})
    if rest:
        raise _unknown(path, root)
    limits = next(one.metadata for one in fields(config) if one.name == key)
    return replace(config, **{key: _within(limits.get("least"), limits.get("below"), convert(text, hint, path), path)})


def _within(least: float | None, below: float | None, value: Any, path: str) -> Any:
    if value is not None and least is not None and not value >= least:
        raise ZambaError(f"--set {path}={value}: expected at least {least}")
    if below is not None and not value < below:
        raise ZambaError(f"--set {path}={value}: expected less than {below}")
    return value


def _unknown(path: str, root: Any) -> ZambaError:
    known = [name for name, _, _ in groups(root)]
    last = {name.rpartition(".")[2]: name for name in known}
    near = nearest(path, known) or (f" (did you mean {last[path]}?)" if path in last else nearest(path, last))
    return ZambaError(f"unknown key {path!r}{near}" if near else f"unknown key {path!r}; keys are {', '.join(known)}")


# values


def convert(text: str, hint: Any, path: str) -> Any:
    """The value of type ``hint`` that ``text`` means."""
    if hint is Any:
        return _json_or_text(text)
    kind = get_origin(hint) or hint
    if kind in (UnionType, Union):
        return _optional(text, hint, path)
    if kind in (dict, tuple):
        return _container(text, kind, hint, path)
    reader, expected = _READERS[kind]
    try:
        return reader(text)
    except (ValueError, OverflowError) as error:
        raise ZambaError(f"--set {path}={text}: expected {expected}") from error


def _optional(text: str, hint: Any, path: str) -> Any:
    if text.lower() in ("none", "null", ""):
        return None
    return convert(text, next(one for one in get_args(hint) if one is not NoneType), path)


def _container(text: str, kind: type, hint: Any, path: str) -> Any:
    """JSON, or for a tuple words divided by commas."""
    inner = get_args(hint)
    try:
        found = json.loads(text)
    except ValueError as error:
        if kind is dict:
            raise ZambaError(f"--set {path}={text}: expected a JSON object, or one entry: {path}.NAME=VALUE") from error
        found = [word.strip() for word in text.split(",") if word.strip()]
    if kind is dict:
        if not isinstance(found, dict):
            raise ZambaError(f"--set {path}={text}: expected a JSON object, or one entry: {path}.NAME=VALUE")
        return {str(key): convert(_text(value), inner[1], f"{path}.{key}") for key, value in found.items()}
    found = found if isinstance(found, list) else [found]
    return tuple(convert(_text(value), inner[0], path) for value in found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _whole(text: str) -> int:
    number = float(text.replace("_", ""))
    if number != int(number):
        raise ValueError(text)
    try:
        return int(text.replace("_", ""))
    except ValueError:
        return int(number)


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in truths:
        raise ValueError(text)
    return truths[text.lower()]


_READERS = {
    int: (_whole, "a whole number, such as 64 or 700e6"),
    float: (_number, "a finite number, such as 3e-4"),
    bool: (_truth, "true or false"),
    str: (str, "text"),
}


# saved configs


def from_dict(kind: type, raw: Mapping[str, Any]) -> Any:
    """A config from what ``dataclasses.asdict`` made of one and JSON gave back."""
    hints = get_type_hints(kind)
    values = {}
    for one in fields(kind):
        if one.name in raw:
            values[one.name] = _restored(raw[one.name], hints[one.name])
    if unknown := set(raw) - {one.name for one in fields(kind)}:
        raise ZambaError(f"recipe.json has {', '.join(sorted(unknown))}, which {kind.__name__} has not: another version wrote it")
    return kind(**values)


def _restored(value: Any, hint: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value)
    return tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value
