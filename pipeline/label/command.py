"""The command `label`: a table of texts becomes a table of an endpoint's answers."""

import os
import sys
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from checkpoints.errors import UserError, check_file
from pipeline.label.answers import AnswerTable, Texts, key
from pipeline.label.endpoint import PAIR, SINGLE, Endpoint, named_label
from stages.tasks.tables import rows_with

WITHOUT = {
    "logprobs": "gives no log-probabilities: lines have labels alone (samples=5 would count answers)",
    "n": "gives one answer a request: each sample was a request of its own",
    "temperature": "takes no temperature: it answered at its own",
}
"""What a server refused -> what was done without it."""


def label_table(endpoint: Endpoint, texts: list[Texts], target: Path) -> bool:
    """Ask for the labels of the texts that the target does not have yet; return whether all have an answer then.

    Args:
        texts: the texts of the rows; equal ones are asked once.
    """
    table = AnswerTable(target, endpoint.labels, endpoint.model)
    distinct = {key(row): row for row in reversed(texts)}
    wanted = [row for row in dict.fromkeys(map(key, texts)) if row not in table.known]
    print(
        f"{len(texts):,} rows, {len(distinct):,} distinct texts: {len(distinct) - len(wanted):,} are answered in {target}, "
        f"{len(wanted):,} are asked of {endpoint.model} at {endpoint.base_url}",
        flush=True,
    )
    every = 0.1 if sys.stderr.isatty() else 60.0
    bar = tqdm(total=len(wanted), unit=" texts", mininterval=every, disable=not wanted)
    spent = False
    try:
        with bar:
            spent = not endpoint.label_all((distinct[row] for row in wanted), table, bar.update)
    finally:
        _tell(endpoint, table, len(wanted) - int(bar.n), spent, target)
    return len(table.known.keys() & distinct.keys()) == len(distinct)


def _tell(endpoint: Endpoint, table: AnswerTable, left: int, spent: bool, target: Path) -> None:
    counts = table.counts()
    shown = [
        (label if label is not None else "(not understood)", count) for label, count in counts.most_common()
    ]
    if shown:
        print(tabulate(shown, ["label", "texts"]))
    for refused in sorted(endpoint.left_out):
        print(f"{endpoint.model} {WITHOUT[refused]}")
    print(f"{endpoint.requests:,} requests and {endpoint.tokens:,} tokens now; the answers are in {target}")
    if left:
        why = "the budget is used up" if spent else f"requests failed (the last one: {endpoint.last_error})"
        print(f"{left:,} texts are left, because {why}: run the same command again to go on")


def texts_of(path: Path, columns: tuple[str, ...], encoding: str, delimiter: str) -> list[Texts]:
    """The texts of a table.

    Raises:
        UserError: a column is missing, a text is empty, or there are no rows.
    """
    check_file(path, "give a table of texts", "data")
    rows: list[Texts] = []
    for line, row in rows_with(path, columns, encoding, delimiter):
        texts = tuple("" if row[column] is None else str(row[column]) for column in columns)
        if not all(text.strip() for text in texts):
            raise UserError(f"{path}, line {line}: a text is empty; fill it in, or remove the row")
        rows.append(texts)
    return rows


def prompt_of(path: str, pairs: bool, labels: list[str]) -> str:
    """The prompt of a file, or the usual one.

    Raises:
        UserError: the file is missing, has no place for a text, or does not name a label.
    """
    if not path:
        return PAIR if pairs else SINGLE
    try:
        prompt = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a text file", "prompt") from None
    for name in ("{text}", "{text_b}")[: 1 + pairs]:
        if name not in prompt:
            raise UserError(f"{path} has no {name}, where the text goes; put it in", "prompt")
    if "{labels}" not in prompt:
        for label in labels:
            if label.casefold() not in prompt.casefold():
                raise UserError(
                    f"{path} does not name the label {label!r}; put it in, or {{labels}}", "prompt"
                )
    return prompt


def check_labels(labels: list[str]) -> list[str]:
    """The labels that may be answered.

    Raises:
        UserError: there are fewer than two, or answers could not tell two of them apart.
    """
    if len(labels) < 2:
        raise UserError(
            f"{', '.join(labels) or 'none'}: give two labels or more, as in labels=positive,negative",
            "labels",
        )
    for label in labels:
        if named_label(label, labels) != label:
            raise UserError(
                f"an answer {label!r} would not be understood; give labels that differ in more than case",
                "labels",
            )
    return labels


def base_url(given: str) -> str:
    """The server's address, from the option or OPENAI_BASE_URL.

    Raises:
        UserError: there is none.
    """
    found = given or os.environ.get("OPENAI_BASE_URL", "")
    if not found.startswith(("http://", "https://")):
        raise UserError(
            f"{found or 'none'}: give the address of a server, such as http://localhost:8000/v1", "base_url"
        )
    return found
