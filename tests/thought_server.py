"""A stand-in for vLLM and SGLang that speaks what Recast asks of them: completions of token prompts
and the calls that load weights from a folder. It samples with plain transformers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import naive
import torch
from transformers import AutoModelForCausalLM

Fault = Callable[[dict[str, Any]], Any]
"""What a faulty server answers in place of this; text is sent as it is."""


class ThoughtServer:
    """Its weights, what it was asked, and what is wrong with it."""

    def __init__(self, owner: str) -> None:
        self.owner, self.model, self.version = owner, None, "default"
        self.calls: list[tuple[str, Any]] = []
        self.faults: dict[str, Fault] = {}
        """By path."""
        self.script: dict[int, list[int]] = {}
        """Thoughts by seed, in place of what it would sample."""
        self.delay_s = 0.0
        self.lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, body: Any) -> Any:
        """The JSON of an answer; None: there is no such path."""
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "policy", "owned_by": self.owner}]}
        if path == "/v1/completions":
            return self.complete(body)
        if self.owner == "sglang" and path == "/update_weights_from_disk":
            self.load(body["model_path"])
            self.version = body["weight_version"]
            return {"success": True, "message": "Succeeded to update model weights."}
        if self.owner == "vllm" and path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.load(body["kwargs"]["weights_path"])
            return {"results": [None]}
        return "" if self.owner == "vllm" and path == "/reset_prefix_cache" else None

    def load(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(body["seed"])
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < body["max_tokens"] and not set(tokens[-1:]) & {*body["stop_token_ids"]}:
            logits = naive.next_logits(self.model, body["prompt"] + tokens, 1)[0]
            biased = logits.clone()
            for place, bias in body["logit_bias"].items():
                biased[int(place)] += bias
            drawn = torch.multinomial((biased / body["temperature"]).softmax(0), 1, generator=draw)
            token = self.script.get(body["seed"], {len(tokens): int(drawn)})[len(tokens)]
            tokens.append(token)
            logprobs.append(float(logits.log_softmax(0)[token]))
        choice = {"index": 0, "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
        version = {"metadata": {"weight_version": self.version}} if self.owner == "sglang" else {}
        return {"object": "text_completion", "model": body["model"], "choices": [choice], **version}


@contextmanager
def thought_server(owner: str = "sglang") -> Iterator[ThoughtServer]:
    """A server on a free port of this machine, until the block ends."""
    server = ThoughtServer(owner)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            with server.lock:
                server.calls.append((self.path, body))
                answer = server.answer(self.path, body)
                answer = server.faults.get(self.path, lambda answer: answer)(answer)
            time.sleep(server.delay_s)
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(404 if answer is None else 200)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815  # the names are http.server's

        def log_message(self, *_: object) -> None:
            pass

    class Http(ThreadingHTTPServer):
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            """Of who did not wait for the answer."""

    with Http(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
