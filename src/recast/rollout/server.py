"""A server on this machine that samples: requests in, tokens with their log-probabilities out; and
the weights that it samples with, as a folder.

Asked is OpenAI's `/v1/completions` with what vLLM and SGLang both add to it: `stop_token_ids`,
`top_k`, `min_p`, `repetition_penalty`, and `return_token_ids` with `token_ids` in the answer
(vllm/entrypoints/openai/completion/protocol.py; sglang/srt/entrypoints/openai/protocol.py, pull
request 30917). Weights are no part of that protocol; each has a call of its own (`_HANDOVERS`).

A thought is a request of its own with a seed of its own: of several in one request SGLang gives all
the same seed (its pull request 28805). Both keep the keys and values of a prompt that comes again.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from recast.run.reading import reason_of
from recast.types import RecastError, in_short, one_line, require, require_range

_MOST_AT_ONCE = 256
"""Requests; vLLM's own limit of sequences in a batch was that for long (`--max-num-seqs`)."""
_HANDOVERS: dict[str, Callable[[str, int], list[tuple[str, dict[str, Any]]]]] = {
    "sglang": lambda path, step: [
        ("/update_weights_from_disk", {"model_path": path, "weight_version": str(step)})
    ],
    "vllm": lambda path, step: [
        ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}}),
        ("/reset_prefix_cache", {}),
    ],
}
"""What a server of this owner is asked, in turn, so that it samples with the weights of a folder:
docs.sglang.io, "SGLang for RL Systems"; docs.vllm.ai, "Layerwise reloading" and "Security"."""


class Sampled(NamedTuple):
    """What a server wrote behind a prompt."""

    tokens: list[int]
    logprobs: list[float]
    """The server's own."""
    version: object
    """Of its weights: as it says, else the step behind which it was handed them."""


@dataclass(kw_only=True, slots=True)
class Server:
    """A server that answered, the weights it was handed and how old they may become."""

    url: str
    timeout_s: float
    """For one answer."""
    max_staleness: int
    """Steps."""
    model: str
    """The name that it serves under."""
    owner: str
    step: int | None = None
    """Behind which the weights were that it was handed last; None: none yet."""
    _open: set[HTTPConnection] = field(default_factory=set, repr=False)

    def __str__(self) -> str:
        return self.url

    def is_fresh(self, step: int) -> bool:
        """Whether the weights that it was handed serve this step."""
        return self.step is not None and 0 <= step - self.step <= self.max_staleness

    def hand_over(self, folder: Path, step: int) -> None:
        """Let it sample with the weights in a folder, which are those behind `step`.

        Raises `RecastError` when it cannot.
        """
        serve = "serve the policy that the run begins from, vLLM with VLLM_SERVER_DEV_MODE=1"
        require(self.owner in _HANDOVERS, f"the owner of {self.url}", self.owner, serve)
        try:
            for path, body in _HANDOVERS[self.owner](str(folder.resolve()), step):
                answer = self.ask(path, body)
                if isinstance(answer, dict) and answer.get("success") is False:
                    raise RecastError(f"{path} says {in_short(answer.get('message'))}")
        except RecastError as error:
            raise RecastError(
                f"{self.url} did not take the weights of {folder} ({error}): {serve}"
            ) from error
        self.step = step

    def sample(self, bodies: Sequence[dict[str, Any]]) -> list[Sampled]:
        """What it samples for each request, all of them asked at once. Whatever ends this ends the
        requests that are under way."""
        with ThreadPoolExecutor(min(len(bodies), _MOST_AT_ONCE)) as pool:
            try:
                return list(pool.map(self._sample, bodies))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for connection in list(self._open):
                    with suppress(OSError, AttributeError):  # it is closed already
                        connection.sock.shutdown(socket.SHUT_RDWR)
                raise

    def _sample(self, body: dict[str, Any]) -> Sampled:
        answer = self.ask("/v1/completions", {"model": self.model, **body})
        try:
            choices = answer["choices"]
            if len(choices) != 1:
                raise RecastError(f"{self.url} gave {len(choices)} completions, 1 was asked for")
            tokens, logprobs = choices[0]["token_ids"], choices[0]["logprobs"]["token_logprobs"]
            version = (answer.get("metadata") or {}).get("weight_version", self.step)
            fits = tokens and all(type(token) is int and token >= 0 for token in tokens)
            if not (fits and len(tokens) == len(logprobs) and all(map(math.isfinite, logprobs))):
                raise ValueError("token_ids and token_logprobs do not fit each other")
        except RecastError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecastError(
                f"{self.url} gave a completion that is none ({reason_of(error)}): use a server "
                "that knows return_token_ids and logprobs, such as vLLM or SGLang"
            ) from error
        return Sampled(tokens, logprobs, version)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer, None for an empty one; GET without a body.

        Raises `RecastError` when there is none in time, for another status than 200 and for
        something else than JSON.
        """
        host = urlsplit(self.url)
        connection = HTTPConnection(host.hostname or "", host.port or 80, timeout=self.timeout_s)
        sent = None if body is None else json.dumps(body)
        self._open.add(connection)
        try:
            kind = {"Content-Type": "application/json"}
            connection.request("GET" if sent is None else "POST", path, sent, kind)
            answer = connection.getresponse()
            text, status = answer.read(), answer.status
        except TimeoutError as error:
            raise RecastError(
                f"{self.url}{path} gave no answer in {self.timeout_s:g} s: raise timeout_s, or "
                "lower max_thought_tokens"
            ) from error
        except (OSError, HTTPException) as error:
            raise RecastError(
                f"{self.url}{path} cannot be asked ({reason_of(error)}): start the server, then "
                "the run, with --resume if it had begun"
            ) from error
        finally:
            self._open.discard(connection)
            connection.close()
        said = text.decode(errors="replace")
        if status != 200:
            raise RecastError(f"{self.url}{path} answered {status}: {one_line(said, 200)}")
        try:
            return json.loads(said) if said else None
        except ValueError as error:
            raise RecastError(
                f"{self.url}{path} gave no JSON ({one_line(said, 60)}): use an OpenAI-compatible "
                "server, such as vLLM or SGLang"
            ) from error


def connect(url: object, timeout_s: float = 600.0, max_staleness: int = 0) -> Server:
    """The server at `http://HOST:PORT`, asked once what it serves.

    Raises `RecastError` for an address that is not on this machine, which the policy's folder
    would not reach, and when nothing answers there as OpenAI's `/v1/models` does.
    """
    require_range("timeout_s", timeout_s, 0, 86400, above=True)
    is_count = type(max_staleness) is int and max_staleness >= 0
    require(is_count, "max_staleness", max_staleness, "give a number of steps, 0 or more")
    need = "give http://127.0.0.1:PORT, a server on this machine: it reads the policy's folder"
    require(_is_here(url), "server", url, need)
    server = Server(
        url=str(url).rstrip("/"),
        timeout_s=timeout_s,
        max_staleness=max_staleness,
        model="",
        owner="",
    )
    answer = server.ask("/v1/models")
    try:
        served = answer["data"][0]
        server.model, server.owner = str(served["id"]), str(served.get("owned_by"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise RecastError(
            f"{url}/v1/models names no model ({in_short(answer)}): use an OpenAI-compatible "
            "server, such as vLLM or SGLang"
        ) from error
    return server


def _is_here(url: object) -> bool:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, fits = parts.hostname or "", parts.scheme == "http" and parts.path in ("", "/")
        return fits and parts.port != 0 and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False
