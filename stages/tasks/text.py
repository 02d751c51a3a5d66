"""Text that others wrote: files read line by line, with errors that name the line; and YAML."""

from __future__ import annotations

import ast
import codecs
import gzip
import hashlib
import io
import json
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from checkpoints.errors import UserError


def literal(text: str) -> Any:
    """The value that a text writes as JSON or as Python does; the text itself if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass
    return text


def text_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its newline) of a text file, plain or gzip.

    Lines end at "\\n" alone, so that other separators inside a text do not split it; at "\\r" in a file without any
    "\\n". A byte order mark is dropped.

    Raises:
        UserError: the file cannot be read, or a line is not of the encoding.
    """
    number = 0
    try:
        if encoding.startswith(WIDE):
            with _opened(path) as binary, io.TextIOWrapper(binary, encoding, newline="\n") as text:
                for number, line in enumerate(text, start=1):
                    yield number, line.removeprefix("\ufeff") if number == 1 else line
            return
        for number, raw in enumerate(_raw_lines(path), start=1):
            line = raw.decode(encoding)
            yield number, line.removeprefix("\ufeff") if number == 1 else line
    except UnicodeError as error:
        about = f"not {encoding.upper()} ({getattr(error, 'reason', error)})"
        other = "" if encoding == "utf-8" else ", or give its own encoding"
        raise UserError(f"{path}, line {number}: {about}; save it as UTF-8{other}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from error


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _raw_lines(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        first = file.readline()
        if b"\r" in first and not first.endswith(b"\n"):
            yield from (line + b"\n" for line in first.split(b"\r"))
        elif first:
            yield first
            yield from file


def recognised(path: Path, given: str = "") -> str:
    """Return a text file's encoding: the given one, or utf-8, utf-16, utf-32 (either order) or windows-1252.

    Only what is certain, or nearly so, is recognised: a byte order mark, UTF-8 without an error, zeros in every second
    byte, and a text whose accented letters and signs all stand where Western languages have them. Statistical guesses
    are wrong on short texts (charset-normalizer got five of our six Windows-1252 files wrong).

    Raises:
        UserError: the encoding given is unknown, or the text's is not one of these.
    """
    if given:
        try:
            "".encode(given)  # an encoding of text
            return codecs.lookup(given).name.replace("utf-8-sig", "utf-8")
        except LookupError as error:
            raise UserError(
                f"{given!r} is unknown; give the name of an encoding, such as utf-8 or windows-1251",
                argument="encoding",
            ) from error
    first_bad, accented, western = 0, False, True
    letters: set[str] = set()
    try:
        with _opened(path) as file:
            head = file.read(1000)
        for mark, name in MARKS.items():
            if head.startswith(mark):
                return name
        for start, name in enumerate(("utf-16-be", "utf-16-le")):
            if len(head) > 3 and not any(head[start::2]) and all(head[1 - start :: 2]):
                return name
        for number, raw in enumerate(_raw_lines(path), start=1):
            if not raw.isascii():
                try:
                    raw.decode("utf-8")
                    accented = True
                except UnicodeDecodeError:
                    first_bad = first_bad or number
                    western = western and _is_western(raw)
                    letters |= set(raw.decode("windows-1252", errors="ignore").lower()) & set(ACCENTED)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not first_bad:
        return "utf-8"
    # In windows-1250 õ and û are ő and ű. French has û, too, but no ö, ü, ó, ú, í or á.
    odd = "õ" in letters or "û" in letters and letters & set("öüóúíá")
    hungarian = odd and letters <= set(HUNGARIAN)
    if western and not accented and not hungarian:
        return "windows-1252"
    other = "other lines are" if accented else "its encoding is not certain"
    raise UserError(
        f"{path}, line {first_bad}: not UTF-8, and {other}; save it as UTF-8, or set this to what it is in, such as "
        "windows-1252 (Western), windows-1250 (Central European), windows-1251 (Cyrillic), gb18030, big5, shift_jis, "
        "euc-kr",
        argument="encoding",
    )


WIDE = ("utf-16", "utf-32")
MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
ACCENTED = "àâäáãåçèéêëìíîïñòóôöõøœùúûüÿßæÀÂÄÁÃÅÇÈÉÊËÌÍÎÏÑÒÓÔÖÕØŒÙÚÛÜÆªº"
HUNGARIAN = "áéíóöúüõû"
ONE_LETTER = "àÀéÉèÈêÊóÓôòìùûåÅöÖäÄøæíáÁªº"
WORD_BREAKING = "¡¢£¥§©«®°±²³´»¿½¼¾€‚„†‡‰‹“”›™×÷"
SIGNS = WORD_BREAKING + "\xa0·‘’•–—…"


def _is_western(raw: bytes) -> bool:
    """Whether a line is likely Windows-1252: letters with accents within ASCII letters, signs not between letters."""
    try:
        line = raw.decode("windows-1252")
    except UnicodeDecodeError:
        return False
    words = re.findall(rf"[A-Za-z{ACCENTED}]+", line)
    foreign = rf"[{ACCENTED}]{{3}}|^[{ACCENTED}]{{2,}}$"
    alone = any(len(word) == 1 and word in ACCENTED and word not in ONE_LETTER for word in words)
    known = all(char.isascii() or char in ACCENTED or char in SIGNS for char in line)
    between = re.search(rf"[A-Za-z{ACCENTED}][{WORD_BREAKING}][A-Za-z{ACCENTED}]", line)
    return known and not alone and not between and not any(re.search(foreign, word) for word in words)


def check_text(text: object, where: str) -> str:
    """Return `text` if a tokenizer can read it.

    Args:
        where: names its place at the start of the message.

    Raises:
        UserError: it is not a string, or holds a NUL character or half a surrogate pair.
    """
    if isinstance(text, bytes):
        raise UserError(
            f'{where} is bytes ({text!r:.40}), not text; save the column as text (images as structs of "bytes" and '
            '"path", as the package datasets writes them)'
        )
    if not isinstance(text, str):
        raise UserError(f"{where} is not a string but {text!r:.60}; put the text in quotes")
    if "\0" in text:
        raise UserError(f"{where} holds a NUL character: damaged or not UTF-8; save it as UTF-8")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half a surrogate pair at character {error.start}; remove it") from error
    return text


class _EachKeyOnce(yaml.SafeLoader):
    """PyYAML would take the last of equal keys, and drop the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"line {line} has the key {key.value!r} again; keep one of the two")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text: numbers, strings, lists and maps. No code is ever run.

    Args:
        where: names its place at the start of the message.

    Raises:
        UserError: it is not valid YAML, has an alias, or a key twice.
    """
    try:
        aliases = [event for event in yaml.parse(text, yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)]
        value = _EachKeyOnce(text).get_single_data() if not aliases else None
    except Exception as error:  # PyYAML passes on what Python raises for a bad date or number
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where} is not readable YAML: {reason}") from error
    if aliases:  # a few lines of aliases can expand to billions of values
        raise UserError(f"{where} has the alias *{aliases[0].anchor}; write its value instead")
    return value


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a text: they end with a full stop, question or exclamation mark before a capital, or with a line.

    Example:
        >>> list(sentences_of("It rained, i.e. it poured. Nobody came! Why?"))
        ['It rained, i.e. it poured.', 'Nobody came!', 'Why?']
    """
    parts = re.split(r"(?<=[.!?])\s+(?=[^\Wa-z_]|[\"'(])|\n+", text)
    yield from filter(None, map(str.strip, parts))


def folded(text: str) -> str:
    """Return `text` with case and white space folded; texts that are equal after that count as the same."""
    return " ".join(text.casefold().split())


def hashed(text: str | bytes) -> int:
    """Return a number that depends on the content alone, by which rows are parted into splits."""
    return int(hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest(), 16)


def slug(text: str, empty: str = "task") -> str:
    """Return `text` as a name of lower-case letters, digits and hyphens; `empty` if nothing is left of it.

    Letters of any script stay: names of two tasks in one must not become the same.

    Example:
        >>> slug("My Reviews/1"), slug("Отзывы_2")
        ('my-reviews-1', 'отзывы-2')
    """
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-") or empty


def as_argument(name: str, names: Iterable[str]) -> str:
    """Return an option with a list of names, ready to paste."""
    names = list(names)
    plain = all(n.isprintable() and n == n.strip() and n and not set(n) & set(",[]") for n in names)
    ascii_only = not all(n.isprintable() for n in names)
    return shlex.quote(f"{name}={','.join(names) if plain else json.dumps(names, ensure_ascii=ascii_only)}")
