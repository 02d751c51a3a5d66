"""Asks an endpoint that speaks OpenAI's chat protocol for the labels of texts.

The openai package sends the requests: it waits and tries again after 429, 5xx and broken connections, as the server's
Retry-After says, else with a growing pause.
"""

import asyncio
import math
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from checkpoints.errors import UserError
from pipeline.label.answers import Answer, AnswerTable, Texts

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI
    from openai.types.chat import ChatCompletion

MAX_FAILURES = 5
"""Texts in a row without an answer, after which the endpoint counts as gone."""

ROUNDS = 2
"""How many answers a text gets for each sample, at most, where answers name no label."""

SINGLE = "Which of these labels fits the text best: {labels}?\nAnswer with the label alone.\n\nText: {text}\n"
PAIR = "Which of these labels fits the two texts best: {labels}?\nAnswer with the label alone.\n\nText 1: {text}\nText 2: {text_b}\n"


class NotACompletion(Exception):
    """The server has answered, but not in OpenAI's chat protocol: a page, or broken JSON."""


@dataclass
class Endpoint:
    """An OpenAI-style server that labels texts, and how to ask it.

    Attributes:
        base_url: the address of the server, such as http://localhost:8000/v1.
        model: its name there.
        prompt: with {text}, {text_b} for pairs, and {labels}.
        samples: answers for each text.
        logprobs: with one sample, ask for the probabilities of the labels' first tokens.
        retries: how often a request that fails is sent again.
        timeout: seconds until a request counts as failed.
        max_requests, max_tokens: budgets of the whole command; 0: no limit.
        requests, tokens: what was used so far.
        left_out: what the server refused: "logprobs", "n" (several samples a request), "temperature".
        last_error: why a text was not answered, the last such time.
    """

    base_url: str
    model: str
    labels: list[str]
    prompt: str
    samples: int = 1
    logprobs: bool = True
    concurrency: int = 8
    retries: int = 6
    timeout: float = 60.0
    max_requests: int = 0
    max_tokens: int = 0
    requests: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    left_out: set[str] = field(default_factory=set, init=False)
    last_error: str = field(default="", init=False)

    def label_all(self, rows: Iterable[Texts], table: AnswerTable, progress: Callable[[], object]) -> bool:
        """Ask for the label of each row, and append the answers to a table as they come.

        Args:
            rows: one text or two each.
            progress: called after each answer.

        Returns:
            Whether all rows were asked; if not, a budget was used up.

        Raises:
            UserError: the server refuses the requests, or does not answer any more; the table keeps what came.
        """
        # asyncio ends its tasks on Ctrl-C where the handler is Python's own; SIGTERM ends the process: all is on disk.
        own: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        former = {number: signal.signal(number, handler) for number, handler in own.items()}
        try:
            return asyncio.run(self._label_all(iter(rows), table, progress))
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    async def _label_all(
        self, rows: Iterator[Texts], table: AnswerTable, progress: Callable[[], object]
    ) -> bool:
        import openai

        failures, spent = 0, False

        async def count(request: Any) -> None:
            self.requests += request.method == "POST"

        async def ask_on(client: openai.AsyncOpenAI) -> None:
            nonlocal failures, spent
            while not (spent := spent or self._is_spent()):
                if (row := next(rows, None)) is None:
                    return
                try:
                    table.append(await self._answer(client, row))
                    failures = 0
                    progress()
                except (openai.APIError, NotACompletion) as error:
                    failures, self.last_error = failures + 1, _said(error)
                    fatal = getattr(error, "status_code", 0) in (401, 403, 404)
                    if fatal or failures >= MAX_FAILURES:
                        raise self._refused(error) from None

        http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
        client = openai.AsyncOpenAI(
            base_url=self.base_url, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=self.retries,
            timeout=self.timeout, http_client=http,
        )  # fmt: skip
        async with client:
            await self._reach(client)
            await asyncio.gather(*(ask_on(client) for _ in range(self.concurrency)))
        return not spent or next(rows, None) is None

    async def _reach(self, client: "AsyncOpenAI") -> None:
        """Refuse an address where no server listens, which would else be tried again and again."""
        import openai

        try:
            await client.with_options(max_retries=0, timeout=5).get("/models", cast_to=object)
        except openai.APIError as error:
            if type(error.__cause__).__name__ == "ConnectError":
                raise self._refused(error) from None
        except ValueError:
            pass  # no JSON: it listens

    def _is_spent(self) -> bool:
        return bool(
            self.max_requests and self.requests >= self.max_requests
            or self.max_tokens and self.tokens >= self.max_tokens
        )  # fmt: skip

    async def _answer(self, client: "AsyncOpenAI", row: Texts) -> Answer:
        """Ask for one row, again where an answer names no label or the server gives fewer samples than asked for."""
        values = {"labels": ", ".join(self.labels), "text": row[0], "text_b": row[-1]}
        content = re.sub(r"\{(labels|text|text_b)\}", lambda match: values[match[1]], self.prompt)
        answers: list[str] = []
        named: list[str] = []
        probabilities, tokens = None, 0
        while len(named) < self.samples and len(answers) < ROUNDS * self.samples:
            response = await self._completion(client, content, self.samples - len(named))
            used = (response.usage and response.usage.total_tokens) or 0
            tokens, self.tokens = tokens + used, self.tokens + used
            if not response.choices:
                answers.append("")  # counts as an answer, so that this ends
            for choice in response.choices:
                answer = choice.message.content or ""
                answers.append(answer)
                label = named_label(answer, self.labels)
                if label is not None:
                    named.append(label)
                if label is not None and choice.logprobs and choice.logprobs.content:
                    first = choice.logprobs.content[0]
                    probabilities = label_probabilities(
                        {top.token: top.logprob for top in first.top_logprobs or ()}, self.labels
                    )
        counts = Counter(named[: self.samples])
        if self.samples > 1 and named:
            probabilities = {label: counts[label] / sum(counts.values()) for label in self.labels}
        best = max(self.labels, key=lambda label: counts[label]) if named else None
        wrong = answers if len(named) < len(answers) else None
        return Answer(row[0], row[1] if len(row) > 1 else None, best, probabilities, wrong, tokens)

    async def _completion(self, client: "AsyncOpenAI", content: str, samples: int) -> "ChatCompletion":
        """The answers to a prompt; what a server refuses, such as a temperature, is left out from then on."""
        import openai

        wanted: dict[str, dict[str, Any]] = {
            "temperature": {"temperature": 0.0 if self.samples == 1 else 1.0}
        }
        if samples > 1:
            wanted["n"] = {"n": samples}
        if self.logprobs and self.samples == 1:
            wanted["logprobs"] = {"logprobs": True, "top_logprobs": 20}
        left_out = set(self.left_out)
        while True:
            asked = {name: value for name, value in wanted.items() if name not in left_out}
            try:
                completion = await client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": content}],
                    **{name: value for part in asked.values() for name, value in part.items()},
                )  # fmt: skip
            except (
                openai.BadRequestError,
                openai.PermissionDeniedError,
                openai.UnprocessableEntityError,
            ) as error:
                if not asked:
                    raise
                named = [name for name, part in asked.items() if any(_names(str(error), key) for key in part)]
                left_out.add([*asked, *named][-1])
                continue
            except ValueError as error:
                raise NotACompletion(f"no JSON: {error}") from error
            choices = getattr(completion, "choices", None)
            if not isinstance(choices, list) or not all(choice.message for choice in choices):
                raise NotACompletion(f"without choices: {completion!r}")
            self.left_out |= left_out
            return completion

    def _refused(self, error: "APIError | NotACompletion") -> UserError:
        status = getattr(error, "status_code", None)
        what, check = "did not answer", "base_url=, and that a server runs there"
        if isinstance(error, NotACompletion):
            what = "answered, but not in OpenAI's chat protocol"
            check = "base_url=, which mostly ends with /v1"
        elif status:
            what, check = f"answered {status}", "base_url=, model= and the key in OPENAI_API_KEY"
        return UserError(
            f"{self.base_url} {what} ({_said(error)}); check {check}. What was answered is kept: run the same command again to go on"
        )


def _said(error: Exception) -> str:
    """An error of a request on one line, with what broke the connection, if that is it."""
    cause = "" if hasattr(error, "status_code") else error.__cause__ or ""
    return " ".join(f"{error} {cause}".split())[:300]


def _names(message: str, setting: str) -> bool:
    """Whether a server's words name a setting. That of one letter must stand in quotes."""
    return (
        re.search(rf"\b{setting}\b" if len(setting) > 1 else rf"['\"`]{setting}['\"`]", message) is not None
    )


def named_label(answer: str, labels: list[str]) -> str | None:
    """The one label that an answer names; None where it names none, or several.

    Upper and lower case, and other words around the label, do not matter. "no show" names that label, not "no" as well.
    What a model thinks aloud, up to "</think>", is not its answer.

    Example:
        >>> named_label("The label is: Positive.", ["positive", "negative"])
        'positive'
        >>> named_label("positive or negative", ["positive", "negative"]) is None
        True
    """
    thought, end, rest = answer.rpartition("</think>")
    if not end and "<think>" in rest:  # it has not come to an end
        return None
    rest, found = rest.casefold(), []
    for label in sorted(labels, key=len, reverse=True):
        rest, times = re.subn(rf"(?<!\w){re.escape(label.casefold())}(?!\w)", "\0", rest)
        if times:
            found.append(label)
    return found[0] if len(found) == 1 else None


def label_probabilities(first_token: dict[str, float], labels: list[str]) -> dict[str, float] | None:
    """Label probabilities from the log-probabilities of an answer's first token.

    A token's probability goes to the label that begins with it.

    Returns:
        label -> probability. None if a token begins several labels and is none of them, or if the labels' tokens together have
        a probability below a half: then the answer probably begins with another word.

    Example:
        >>> label_probabilities({"pos": math.log(0.6), " neg": math.log(0.2), "The": -3.0}, ["positive", "negative"])
        {'positive': 0.75, 'negative': 0.25}
    """
    found = dict.fromkeys(labels, 0.0)
    for token, logprob in first_token.items():
        text = token.strip().casefold()
        begun = [label for label in labels if text and label.casefold().startswith(text)]
        if len(begun) > 1 and not any(label.casefold() == text for label in begun):
            return None
        if begun:
            found[min(begun, key=len)] += math.exp(logprob)
    total = sum(found.values())
    return {label: round(p / total, 6) for label, p in found.items()} if total >= 0.5 else None
