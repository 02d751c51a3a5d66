"""Serve a local page on which teacher and student predict the same text side by side."""

import json
import secrets
import statistics
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from checkpoints.errors import UserError
from pipeline.deploy.classifier import Classifier
from pipeline.report.run_record import RunRecord
from pipeline.report.templates import page
from stages.distillation.teachers import class_order
from stages.tasks.kinds import Nodes, Questions

HOST = "127.0.0.1"
"""Only users of this machine can connect."""

MAX_REQUEST_BYTES = 100_000

PASSES = 5
"""Forward passes of a prediction; the page shows their median latency."""

EXAMPLES = 4


class Predictor:
    """The teacher and the student of a run, which predict one text at a time."""

    def __init__(self, run: RunRecord):
        if run.kind.reads_images or isinstance(run.kind, Nodes):
            what = "images" if run.kind.reads_images else "a graph"
            raise UserError(f"run={run.name} reads {what}, and serve is for texts; use predict")
        self.models = {
            "teacher": Classifier.of_run(run, "teacher"),
            "student": Classifier.of_run(run, run.about.student),
        }
        self.labels = self.models["student"].kind.labels
        self.order = {
            name: class_order(model.model.config, self.labels, []) for name, model in self.models.items()
        }
        self.lock = threading.Lock()
        self.predict(["warm"] * (1 + bool(self.models["student"].pairs)))

    def answer(self, body: bytes) -> dict[str, Any]:
        """Answer a request: the JSON {"texts": [one text, or two]}.

        Returns:
            {"labels": class names or None, "teacher" and "student": {"values": probabilities in the order of the
            labels, [score], or [probability] of the answer to a question; "said": the answer; "milliseconds": the
            median latency}}. For labels of words "marked" stands for "values": the text in pieces, [[piece, its label
            or ""], ...].

        Raises:
            UserError: the request is malformed, or its texts do not fit the task.
        """
        try:
            texts = json.loads(body)["texts"]
        except (ValueError, KeyError, TypeError, RecursionError):
            texts = None
        if not isinstance(texts, list) or not texts:
            raise UserError('send {"texts": ["..."]}, with two texts for a pair')
        row = self.models["student"].check(texts, "the text")
        return {"labels": self.labels} | self.predict(row)

    def predict(self, row: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The prediction of each model, and its latency, tokenization included."""
        found = {}
        with self.lock:  # concurrent passes would slow each other down
            for name in self.models:
                times = []
                for _ in range(PASSES):
                    began = time.perf_counter()
                    answer = self._answer(name, row)
                    times.append(1000 * (time.perf_counter() - began))
                found[name] = answer | {"milliseconds": statistics.median(times)}
        return found

    def _answer(self, name: str, row: Sequence[str]) -> dict[str, Any]:
        model = self.models[name]
        if isinstance(model.kind, Questions):
            ((text, probability),) = model.answers(model.kind, [row])
            return {"values": [probability], "said": text or "no answer"}
        if model.kind.token_level:
            marked = model.marked(row[0])
            said = ", ".join(f"{piece.strip()}: {label}" for piece, label in marked if label)
            return {"marked": marked, "said": said}
        values = model([row])[0]
        return {"values": [float(values[i]) for i in self.order[name]], "said": model.said(values)}


def _fields(run: RunRecord) -> tuple[str, ...]:
    if isinstance(run.kind, Questions):
        return ("question", "text that answers it")
    return ("first text", "second text") if len(run.text_columns) == 2 else ("text",)


def make_server(run: RunRecord, port: int) -> ThreadingHTTPServer:
    """Make the server of a run's page; port 0 takes any free port."""
    nonce = secrets.token_urlsafe(16)
    shown = page(
        "serve.html.j2",
        run=run,
        nonce=nonce,
        fields=_fields(run),
        examples=[row.texts for row in run.student.differ_most[:EXAMPLES]],
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self.reply(HTTPStatus.OK, shown, "text/html")
            else:
                self.tell(HTTPStatus.NOT_FOUND, {"error": "not found: the only page is /"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/answer":
                self.tell(HTTPStatus.NOT_FOUND, {"error": "not found: post to /answer"})
            elif not length.isdecimal() or int(length) > MAX_REQUEST_BYTES:
                self.close_connection = True
                self.tell(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    {"error": f"a request has at most {MAX_REQUEST_BYTES:,} bytes"},
                )
            else:
                try:
                    self.tell(HTTPStatus.OK, predictor.answer(self.rfile.read(int(length))))
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
            """Log no requests."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}): give another port=") from error
    predictor = Predictor(run)  # after the port is known to be free: loading takes seconds
    return server


def serve_run(run: RunRecord, port: int) -> None:
    """Serve the page until Ctrl-C."""
    with make_server(run, port) as server:
        print(f"run {run.name} is served on http://{HOST}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")
