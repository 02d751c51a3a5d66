"""Text files read line by line, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its newline) of a UTF-8 file, gzip or plain.

    Lines end at "\\n" alone, so that odd separators inside a text do not break it. A byte order mark at the
    start is dropped.

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

    Raises:
        UserError: it is no string, or holds a NUL or half a surrogate pair; `where` opens the message.
    """
    if not isinstance(text, str):
        raise UserError(f"{where} is not a string but {text!r:.60}; put the text in quotes")
    if "\0" in text:
        raise UserError(f"{where} holds a NUL character: damaged, or not UTF-8; save it again")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half a surrogate pair at character {error.start}; remove it") from error
    return text


def folded(text: str) -> str:
    """Return `text` with case and white space folded: what counts as the same text."""
    return " ".join(text.casefold().split())
