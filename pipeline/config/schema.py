"""Settings by name, checked and read into dataclasses: commands, presets, recipes and `distill` all go through here.

A dataclass declares each setting once with `stages.training.options.option`: its type with its limits, its default and
a line of help. A field that is itself a dataclass is a group: `general: {epochs: 2}` and `general.epochs=2` are the same.
"""

import difflib
import json
import os
import re
import textwrap
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from inspect import getdoc
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from checkpoints.errors import UserError
from stages.tasks.text import parse_yaml

CONFIG = {"allow_inf_nan": False, "coerce_numbers_to_str": True, "extra": "forbid"}
"""How pydantic reads values, as the `__pydantic_config__` of each outermost dataclass."""

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


@dataclass
class Setting:
    """One setting of a dataclass, by its full name."""

    name: str
    type: Any
    default: Any
    help: str


def describe(schema: type, prefix: str = "", defaults: Any = None) -> list[Setting]:
    """Every setting of a dataclass and its groups, in the order of definition.

    Args:
        defaults: an instance whose values stand as the defaults; None: the dataclass's own.
    """
    found, groups, defaults = [], groups_of(schema), defaults or schema()
    for entry in fields(schema):
        default = getattr(defaults, entry.name)
        if entry.name in groups:
            found += describe(groups[entry.name], f"{prefix}{entry.name}.", default)
        else:
            found.append(Setting(prefix + entry.name, entry.type, default, entry.metadata["help"]))
    return found


def groups_of(schema: type) -> dict[str, type]:
    """The groups of a dataclass: its fields that are dataclasses, by name."""
    types = {entry.name: entry.type for entry in fields(schema)}
    return {name: kind for name, kind in types.items() if isinstance(kind, type) and is_dataclass(kind)}


def help_text(
    schema: type,
    title: str = "Options",
    defaults: Any = None,
    beside: type | None = None,
    without: Collection[str] = (),
) -> str:
    """Every setting of a dataclass with its default and help, group by group.

    Args:
        title: the heading of the settings in no group; those of a group stand under its docstring.
        defaults: an instance whose values stand as the defaults; None: the dataclass's own.
        beside: a dataclass whose settings are left out.
        without: settings and groups that are left out, too.
    """
    lines, groups = [], groups_of(schema)
    left_out = describe(beside) if beside else []
    described = [
        setting
        for setting in describe(schema, defaults=defaults)
        if setting not in left_out and setting.name.split(".")[0] not in without
    ]
    for group, settings in groupby(described, lambda setting: setting.name.rpartition(".")[0]):
        heading = " ".join((getdoc(groups[group]) or "").split()) if group else title
        lines += ["", textwrap.fill(heading, 110), ""]
        for setting in settings:
            text = f"{setting.help}  [{show(setting.default)}]"
            lines.append(f"  {setting.name:<29} {textwrap.fill(text, 78, subsequent_indent=' ' * 32)}")
    return "\n".join(lines).lstrip("\n")


def show(value: Any) -> str:
    """A default as help and docs show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return "none" if value in ("", None, [], {}) else str(value)


def arguments(texts: Iterable[str]) -> dict[str, str]:
    """The settings on a command line, by name: `name=value`, `--name=value` or `--name value`. A later one wins.

    Raises:
        UserError: an argument is none of these.
    """
    given, rest = {}, list(texts)
    while rest:
        text = rest.pop(0)
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals and text.startswith("--") and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        if not equals:
            advice = f"{text} VALUE" if text.startswith("--") else "key=value or --key value"
            raise UserError(f"{text!r} has no value: write {advice}, for example general.epochs=2")
        given[name.strip()] = value
    return given


def updated(settings: D, given: Mapping[str, Any], where: str = "") -> D:
    """A copy of a dataclass with the given values, which may be texts as on a command line.

    Args:
        settings: an instance, which stays as it is.
        given: name -> value; a group is a mapping or part of the name ("general.epochs").
        where: what messages begin with.

    Raises:
        UserError: names that do not exist, or all values that are not of their type or out of their limits.
    """
    known = {setting.name: setting for setting in describe(type(settings))}
    flat = dict(flattened(type(settings), given))
    if unknown := [_unknown(name, known) for name in flat if name not in known]:
        raise UserError(where + "; ".join(unknown))
    values = asdict(settings)
    for name, value in flat.items():
        *groups, last = name.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[last] = _parsed(value, known[name].type, where + name)
    return checked(type(settings), values, where)


def checked(schema: type[T], values: Any, where: str = "") -> T:
    """Return values that a type has checked and converted.

    Args:
        schema: a dataclass, or a TypedDict.

    Raises:
        UserError: names all values of a wrong type or out of their limits.
    """
    from pydantic import ValidationError  # takes a tenth of a second, and --help has no use for it

    key: Any = schema  # which mypy takes for something that has no hash
    try:
        return _validator(key).validate_python(values)
    except ValidationError as error:
        raise UserError(where + "; ".join(_messages(error.errors(include_url=False)))) from None


def flattened(schema: type, given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full name, value) of each setting: {"a": {"b": 1}} gives ("a.b", 1).

    Args:
        schema: the dataclass whose groups may be nested in `given`.
    """
    groups = groups_of(schema)
    for name, value in given.items():
        if isinstance(value, Mapping) and name in groups:
            yield from flattened(groups[name], value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def read_yaml(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a file.

    Raises:
        UserError: it holds something else, or is not readable.
    """
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold `option: value` lines")
    return {str(name): value for name, value in settings.items()}


def closest(name: str, known: Iterable[str]) -> str:
    """The known names that are like one that is not known, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 3, 0.6)
    close += [n for n in known if n.split(".")[-1] == name.split(".")[-1] and n not in close][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known) or 'none'}"


def _unknown(name: str, known: Iterable[str]) -> str:
    hint = closest(name, known)
    return f"unknown option {name!r}{hint if len(hint) < 200 else '; --help lists all'}"


def _parsed(value: Any, kind: Any, name: str) -> Any:
    """A value that is a text, as on a command line, as what its type reads. Texts stay texts."""
    is_text = kind in (str, str | None) or typing.get_origin(kind) is Literal
    is_list = typing.get_origin(kind) is list
    if isinstance(value, PathLike):
        value = os.fspath(value)
    if isinstance(value, tuple):
        value = list(value)
    if value is None or value == "":
        return "" if is_text else [] if is_list else None
    if kind == list[str] and isinstance(value, str):
        return _names(value, name)
    if isinstance(value, str) and not is_text:
        value = parse_yaml(value, f"the value of {name}={value!r}")
    if isinstance(value, str) and (is_list or _is_list_or_bool(kind)):
        value = value.split("," if "," in value else None)
    elif is_list and not isinstance(value, list):
        value = [value]
    return value if is_text or _mentions(kind, (bool, Any)) else _bools_as_texts(value)


def _is_list_or_bool(kind: Any) -> bool:
    """Whether a type is a union of bool and a list, so that any other text names parts of the list."""
    parts = typing.get_args(kind)
    return len(parts) == 2 and bool in parts and any(typing.get_origin(part) is list for part in parts)


def _mentions(kind: Any, kinds: tuple) -> bool:
    """Whether a type is one of some types, or a composition of one."""
    return kind in kinds or any(_mentions(part, kinds) for part in typing.get_args(kind))


def _bools_as_texts(value: Any) -> Any:
    """A value for a type without bool, of which pydantic would read true as 1."""
    if isinstance(value, dict):
        return {name: _bools_as_texts(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_bools_as_texts(inner) for inner in value]
    return str(value).lower() if isinstance(value, bool) else value


def _names(value: str, name: str) -> list[str]:
    """A list of names: `a,b`, or in brackets, where names that hold a comma are quoted: `["a, b", c]`."""
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",")]
    try:
        names = json.loads(value)
    except (ValueError, RecursionError):
        names = parse_yaml(value, f"the value of {name}={value!r}")
    return [part if isinstance(part, str) else json.dumps(part, default=str) for part in names]


@cache
def _validator(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _messages(errors: list) -> list[str]:
    """A text for each value that is wrong: the value, and what it must be."""
    messages: dict[str, list[str]] = {}
    for error in errors:  # a union's own parts of the path, such as "list[int]" and "bool", are left out
        parts = [part for part in error["loc"] if part != "bool"]
        name = ".".join(str(part) for part in parts if str(part).isidentifier() or isinstance(part, int))
        text = re.sub(r"^(Input|List|String|Dictionary) should ", "must ", error["msg"])
        text = re.sub(r", (unable to|got a) .*", "", text).replace("a valid boolean", "true or false")
        text = text.replace("Extra inputs are not permitted", "is not an option")
        messages.setdefault(f"{name}={error['input']!r:.80}", []).append(
            text.partition(" after validation")[0]
        )
    return [
        f"{value} {' or '.join(dict.fromkeys(texts)).replace(' or must be ', ' or ')}"
        for value, texts in messages.items()
    ]
