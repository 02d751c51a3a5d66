"""A server that speaks as much of OpenAI's chat protocol as is needed, and breaks in the ways that servers do."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub:
    """Counts what it is asked.

    Attributes:
        answer: text -> what the model says.
        fault: (text, how often it was asked before) -> "", "429", "500", "401", "400", "broken", "page", "torn", "empty" or "slow".
        one_choice: it gives one answer a request, however many are asked for.
        refused: names of settings that it refuses with 400.
        asked: how often each text was answered.
        requests: all requests.
        keys: the keys that came with them.
        logprobs: text -> {token: probability} of the first token; none: the server refuses to give them.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str], str] = lambda text: "good" if "good" in text else "bad"
        self.fault: Callable[[str, int], str] = lambda text, before: ""
        self.logprobs: Callable[[str], dict[str, float]] | None = None
        self.one_choice = False
        self.refused: tuple[str, ...] = ()
        self.asked: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.requests, self.keys = 0, set()
        self.prompts: list[str] = []
        self.url = ""
        self.lock = threading.Lock()


@contextmanager
def serving() -> Iterator[Stub]:
    """Run a stub on a port of this machine."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            text = prompt.rpartition("Text: ")[2].strip()
            with stub.lock:
                stub.requests += 1
                stub.keys.add(self.headers["Authorization"])
                stub.prompts.append(prompt)
                fault = stub.fault(text, stub.tries[text])
                stub.tries[text] += 1
            if fault == "broken":
                self.close_connection = True
                return self.connection.close()
            if fault == "page":  # as where base_url lacks its /v1
                return self.send_text(b"<html>Sign in</html>", "text/html")
            if fault == "torn":
                return self.send_text(b'{"choices": [')
            if fault == "empty":
                return self.send({})
            if fault == "slow":
                time.sleep(0.2)
            elif fault:
                return self.send({"error": {"message": f"a fault ({fault})"}}, int(fault))
            if name := next((name for name in stub.refused if name in body), None):
                return self.send({"error": {"message": f"Unsupported value: {name}"}}, 400)
            if body.get("logprobs") and stub.logprobs is None:
                return self.send({"error": {"message": "logprobs are not supported"}}, 400)
            with stub.lock:
                stub.asked[text] += 1
            self.send(self.completion(body, text))

        def completion(self, body: dict, text: str) -> dict:
            import math

            choices = []
            for i in range(1 if stub.one_choice else body.get("n") or 1):
                choice = {"index": i, "finish_reason": "stop",
                          "message": {"role": "assistant", "content": stub.answer(text)}}  # fmt: skip
                if body.get("logprobs") and stub.logprobs:
                    top = [
                        {"token": token, "logprob": math.log(p), "bytes": None}
                        for token, p in stub.logprobs(text).items()
                    ]
                    choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}], "refusal": None}
                choices.append(choice)
            usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
            return {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": choices,
                    "usage": usage}  # fmt: skip

        def send(self, value: dict, status: int = 200) -> None:
            self.send_text(json.dumps(value).encode(), status=status)

        def send_text(self, content: bytes, kind: str = "application/json", status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # a client that was killed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
