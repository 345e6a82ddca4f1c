"""Thoughts that a server writes against those that the policy writes itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_thoughts import prompts_of, thinking
from thought_server import thought_server

from recast.policy.load import Policy
from recast.policy.save import save_weights
from recast.rollout.frame import frame_of
from recast.rollout.server import connect
from recast.rollout.think import think
from recast.types import Draw, RecastError

LIMIT = 7
SETTINGS = {"thoughts": 2, "max_thought_tokens": LIMIT}
DRAW = Draw(seed=3, step=2)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return thinking()


@pytest.fixture(scope="module")
def folder(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    save_weights(policy.model, place)
    return place


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_what_follows_a_thought_does_not_hang_on_who_wrote_it(
    policy: Policy, folder: Path, owner: str
) -> None:
    """The server writes what the policy wrote: then all numbers are the same."""
    prompts = prompts_of(policy)
    own = think(policy, prompts, 8, DRAW, **SETTINGS)
    seeds = (DRAW.uniforms(prompts, "think", 2) * 2**31).long().flatten().tolist()
    assert own.thoughts
    rows = own.thoughts.tokens.flatten(0, 1).tolist()
    sizes = own.thoughts.num_written.flatten().tolist()
    with thought_server(owner) as server:
        server.script = {
            seed: row[:size] for seed, row, size in zip(seeds, rows, sizes, strict=True)
        }
        client = connect(server.url, max_staleness=1)
        client.hand_over(folder, 1)
        served = think(policy, prompts, 8, DRAW, **SETTINGS, server=client)
        bodies = [body for path, body in server.calls if path == "/v1/completions"]
    found = served.thoughts
    assert found
    for name in ("tokens", "lengths", "num_written", "is_closed", "has_format", "begins", "of"):
        assert getattr(found, name).equal(getattr(own.thoughts, name)), name
    assert 0 < int(found.is_closed.sum()) < 6
    assert (found.logprobs - own.thoughts.logprobs).abs().max() <= 1e-5
    assert served.items.equal(own.items)
    assert (served.rollout_logprobs - own.rollout_logprobs).abs().max() <= 1e-5
    assert (served.target_logprobs - own.target_logprobs).abs().max() <= 1e-5
    assert found.server_gap is not None
    assert found.server_gap.max() <= 1e-5
    assert own.thoughts.server_gap is None
    assert found.weights_step.tolist() == [[1, 1]] * 3
    assert own.thoughts.weights_step.tolist() == [[2, 2]] * 3
    sent = {tuple(body.pop("prompt")) for body in bodies}
    assert sent == {(5, 6, 7, 8), (9, 10), (11, 12, 13, 14, 15, 16)}  # without <|sid_begin|>
    assert sorted(body.pop("seed") for body in bodies) == sorted(seeds)
    frame = frame_of(policy, "\n")
    assert bodies[0] == {
        "model": "policy",
        "max_tokens": LIMIT,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": [frame.close, *frame.end],
        "logprobs": 0,
        "return_token_ids": True,
        "logit_bias": {},
    }


def test_no_token_is_drawn_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    """Of a model with two rows more, which look like what the prompts end in."""
    policy = thinking()
    close, head = frame_of(policy, "\n").close, policy.model.get_output_embeddings().weight
    likely = head[close].detach().clone()
    policy.model.resize_token_embeddings(317, mean_resizing=False)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[315:] = likely
    save_weights(policy.model, tmp_path)
    with thought_server() as server:
        client = connect(server.url)
        client.hand_over(tmp_path, 2)
        think(policy, prompts_of(policy), 2, DRAW, **SETTINGS, server=client)
        assert server.calls[-1][1]["logit_bias"] == {"315": -100, "316": -100}


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """A completion whose one choice is another."""
    return lambda answer: answer | {"choices": [answer["choices"][0] | changes]}


def cut(tokens: list[int]) -> Callable[[dict[str, Any]], Any]:
    logprobs = {"token_logprobs": [-1.0] * len(tokens)}
    return changed(token_ids=tokens, logprobs=logprobs)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda answer: None, "/v1/completions answered 404: null"),
        (lambda answer: '{"choices": [', "/v1/completions gave no JSON"),
        (lambda answer: [answer], "gave a completion that is none"),
        (lambda answer: answer | {"choices": []}, "gave 0 completions, 1 was asked for"),
        (changed(token_ids=None), "gave a completion that is none"),
        (changed(token_ids=[5]), "token_ids and token_logprobs do not fit each other"),
        (cut([]), "token_ids and token_logprobs do not fit each other"),
        (cut([400]), "gave token 400 where the tokenizer knows 315: it serves another model"),
        (cut([5, 6]), "gave 2 tokens of an open thought where 7 fit"),
        (cut([5, 302, 6]), "gave 3 tokens where a thought of 2 ends: it knows no stop_token_ids"),
        (cut([5] * 7), "is off the policy's log-probabilities by"),
        (
            lambda answer: answer | {"metadata": {"weight_version": "default"}},
            r"samples with the weights 'default', step 2 needs those of step 2 or later",
        ),
        (
            lambda answer: answer | {"metadata": {"weight_version": "1"}},
            r"samples with the weights '1', step 2 needs those of step 2 or later",
        ),
    ],
)
def test_what_is_no_thought_of_this_policy(
    policy: Policy, folder: Path, fault: Callable[[Any], Any], said: str
) -> None:
    with thought_server() as server:
        client = connect(server.url)
        client.hand_over(folder, 2)
        server.faults["/v1/completions"] = fault
        with pytest.raises(RecastError, match=said):
            think(policy, prompts_of(policy), 2, DRAW, **SETTINGS, server=client)


def test_a_server_that_takes_no_weights(policy: Policy, folder: Path) -> None:
    prompts = prompts_of(policy)
    with thought_server("llama.cpp") as server:
        client = connect(server.url)
        with pytest.raises(RecastError, match=r"the owner of http://.* is 'llama.cpp': serve"):
            client.hand_over(folder, 0)
        with pytest.raises(RecastError, match="samples with the weights None, step 2 needs"):
            think(policy, prompts, 2, DRAW, **SETTINGS, server=client)
    for owner, path, said in (
        ("vllm", "/collective_rpc", "/collective_rpc answered 404"),
        ("sglang", "/update_weights_from_disk", "/update_weights_from_disk says 'other shapes'"),
    ):
        with thought_server(owner) as server:
            refusal = None if owner == "vllm" else {"success": False, "message": "other shapes"}
            server.faults[path] = lambda answer, refusal=refusal: refusal
            whole = rf"did not take the weights of .*{said}.*VLLM_SERVER_DEV_MODE=1"
            with pytest.raises(RecastError, match=whole):
                connect(server.url).hand_over(folder, 0)


def test_a_server_that_is_away_or_slow(policy: Policy, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RecastError, match=rf"127.0.0.1:{port}/v1/models cannot be asked"):
        connect(f"http://127.0.0.1:{port}")
    with thought_server() as server:
        client = connect(server.url, timeout_s=0.2)
        client.hand_over(folder, 2)
        server.delay_s = 0.5
        said = r"/v1/completions gave no answer in 0.2 s: raise timeout_s"
        with pytest.raises(RecastError, match=said):
            think(policy, prompts_of(policy), 2, DRAW, **SETTINGS, server=client)
        server.delay_s = 0
        server.faults["/v1/models"] = lambda answer: {"data": []}
        with pytest.raises(RecastError, match=r"/v1/models names no model \(\{'data': \[\]\}\)"):
            connect(server.url)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "http://203.0.113.9:8000"}, "server is 'http://203.0.113.9:8000': give http://1"),
        ({"url": "https://127.0.0.1:8000"}, "server is 'https://"),
        ({"url": "http://127.0.0.1:8000/v1"}, "server is 'http://127.0.0.1:8000/v1'"),
        ({"url": "http://127.0.0.1:80000"}, "server is 'http://127.0.0.1:80000'"),
        ({"url": 8000}, "server is 8000"),
        ({"timeout_s": 0}, "timeout_s is 0: give a number above 0"),
        ({"max_staleness": -1}, "max_staleness is -1: give a number of steps"),
    ],
)
def test_settings_of_a_server(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecastError, match=said):
        connect(**{"url": "http://127.0.0.1:8000"} | settings)


def test_a_url_is_no_server(policy: Policy) -> None:
    with pytest.raises(RecastError, match="server is 'http://localhost:1': a run connects to it"):
        think(policy, prompts_of(policy), 2, **SETTINGS, server="http://localhost:1")
