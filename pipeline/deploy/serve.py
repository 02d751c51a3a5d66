"""A page on this machine on which teacher and student answer the same text side by side."""

import json
import secrets
import statistics
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from checkpoints.errors import UserError
from pipeline.deploy.predict import Classifier
from pipeline.report.run_record import RunRecord
from pipeline.report.templates import page
from stages.distillation.teachers import class_order

HOST = "127.0.0.1"
"""Nobody but this machine's users is answered."""

LONGEST = 100_000
"""Bytes of a request."""

PASSES = 5
"""Of which the median is shown."""

EXAMPLES = 4


class Answers:
    """The teacher and the student of a run, asked one text at a time."""

    def __init__(self, run: RunRecord):
        if run.about.words:
            raise UserError(
                f"run {run.name} labels words, and the page shows answers to whole texts: use predict"
            )
        self.models = {
            "teacher": Classifier.of_run(run, "teacher"),
            "student": Classifier.of_run(run, run.about.student),
        }
        self.labels = self.models["student"].labels
        self.order = {
            name: class_order(model.model.config, self.labels, []) for name, model in self.models.items()
        }
        self.lock = threading.Lock()
        self.ask([["warm"] * (1 + bool(self.models["student"].pairs))])

    def answer(self, body: bytes) -> dict[str, Any]:
        """Answer a request {"texts": [one, or the two of a pair]}.

        Returns:
            {"labels": class names or None, "teacher" and "student": {"values": probabilities in the order of
            labels (or [score]), "milliseconds": the median of some passes}}.

        Raises:
            UserError: what was asked cannot be answered.
        """
        try:
            texts = json.loads(body)["texts"]
            rows = [self.models["student"].check(list(texts), "the text")]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError('ask with {"texts": ["..."]}, two texts for a pair') from error
        return {"labels": self.labels} | self.ask(rows)

    def ask(self, rows: list[list[str]]) -> dict[str, dict[str, Any]]:
        """What each model answers, and how long it takes, tokenizing included."""
        found = {}
        with self.lock:  # passes at once would slow each other down
            for name, model in self.models.items():
                times = []
                for _ in range(PASSES):
                    began = time.perf_counter()
                    values = model(rows)[0]
                    times.append(1000 * (time.perf_counter() - began))
                ordered = [float(values[i]) for i in self.order[name]]
                found[name] = {"values": ordered, "milliseconds": statistics.median(times)}
        return found


def make_server(run: RunRecord, port: int) -> ThreadingHTTPServer:
    """The server of a run's page; port 0 takes any that is free.

    Raises:
        UserError: the port is in use.
    """
    nonce = secrets.token_urlsafe(16)
    shown = page(
        "serve.html.j2",
        run=run,
        nonce=nonce,
        pairs=len(run.text_columns) == 2,
        examples=[row.texts for row in run.student.differ_most[:EXAMPLES]],
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.reply(HTTPStatus.OK, shown, "text/html")
            else:
                self.tell(HTTPStatus.NOT_FOUND, {"error": "there is only one page: /"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/answer":
                self.tell(HTTPStatus.NOT_FOUND, {"error": "ask /answer"})
            elif not length.isdecimal() or int(length) > LONGEST:
                self.close_connection = True
                self.tell(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"at most {LONGEST:,} bytes are read"}
                )
            else:
                try:
                    self.tell(HTTPStatus.OK, answers.answer(self.rfile.read(int(length))))
                except UserError as error:
                    self.tell(HTTPStatus.BAD_REQUEST, {"error": str(error)})

        def tell(self, status: HTTPStatus, value: dict[str, Any]) -> None:
            self.reply(status, json.dumps(value).encode(), "application/json")

        def reply(self, status: HTTPStatus, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}): give another port=") from error
    answers = Answers(run)  # after the port, for it takes seconds
    return server


def serve_run(run: RunRecord, port: int) -> None:
    """Serve the page until Ctrl-C."""
    with make_server(run, port) as server:
        print(f"run {run.name} answers on http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
