"""Text that others wrote: files read line by line, with errors that name the line; and YAML."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from checkpoints.errors import UserError


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its newline) of a UTF-8 file, plain or gzip.

    Lines end at "\\n" alone, so that other separators inside a text do not split it. A byte order mark is dropped.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from error


def check_text(text: object, where: str) -> str:
    """Return `text` if a tokenizer can read it.

    Args:
        text: what was given.
        where: names its place at the start of the message.

    Raises:
        UserError: it is not a string, or holds a NUL character or half a surrogate pair.
    """
    if not isinstance(text, str):
        raise UserError(f"{where} is not a string but {text!r:.60}; put the text in quotes")
    if "\0" in text:
        raise UserError(f"{where} holds a NUL character: damaged or not UTF-8; save it as UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half a surrogate pair at character {error.start}; remove it") from error
    return text


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text: numbers, strings, lists and maps. No code is ever run.

    Args:
        text: the YAML.
        where: names its place at the start of the message.

    Raises:
        UserError: it is not valid YAML, or has an alias.
    """
    try:
        aliases = [event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)]
        value = yaml.safe_load(text) if not aliases else None
    except Exception as error:  # PyYAML passes on what Python raises for a bad date or number
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not readable YAML: {reason}") from error
    if aliases:  # a few lines of aliases can expand to billions of values
        raise UserError(f"{where} has the alias *{aliases[0].anchor}; write its value instead")
    return value


def folded(text: str) -> str:
    """Return `text` with case and white space folded; texts that are equal after that count as the same."""
    return " ".join(text.casefold().split())


def slug(text: str, empty: str = "task") -> str:
    """Return `text` as a name of lower-case letters, digits and hyphens; `empty` if nothing is left of it."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-") or empty
