"""An OpenAI-compatible server that replies from a script: the edge of judges that we do not own."""

from __future__ import annotations

import json
import math
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any], Mapping[str, str]], tuple[int, Any]]


class JudgeServer:
    """Answers POSTs with `reply(body, headers)`: a status and a JSON value, or a text."""

    def __init__(self, reply: Reply) -> None:
        self.bodies: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                code, data = reply(body, self.headers)
                content = data if isinstance(data, str) else json.dumps(data)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def chat(text: str, finish_reason: str = "stop") -> tuple[int, dict[str, Any]]:
    """A chat completion."""
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    return 200, {"choices": [choice], "usage": {"total_tokens": 7}}


def opinionated(body: dict[str, Any], _: Mapping[str, str]) -> tuple[int, Any]:
    """A judge of every form with an opinion on each text that depends on the text alone."""
    system, user = (message["content"] for message in body["messages"])
    liking = zlib.crc32(user.encode()) % 100
    if body.get("logprobs"):
        top = [{"token": "Yes", "logprob": math.log((liking + 1) / 102)}, {"token": "No", "logprob": math.log(0.3)}]
        return 200, {"choices": [{"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    if "first wrong step" in system:
        return chat(f"\\boxed{{{-1 if liking < 50 else 0}}}")
    if "compare two texts" in system:
        texts = re.findall(r" text:\n`+\n(.*?)\n`+(?:\n|$)", user, re.S)
        likings = [zlib.crc32(text.encode()) % 11 for text in texts]
        return chat(json.dumps(dict(zip(("first", "second"), likings, strict=True))))
    if "grade an answer" in system:
        return chat(json.dumps({"levels": {"right": liking % 2, "plain": liking % 3}}))
    return chat(f"\\boxed{{{1 + liking % 10}}}")
