"""One function under trial: it runs on examples, its results are read and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from recast.methods.parts import Part, name_of, require_resources, supply, with_parameters
from recast.methods.probe import probe_groups, probe_resources
from recast.testing.examples import CONSTANTS, LARGEST, Example, examples, orders, without_ties
from recast.testing.reading import (
    BrokenError,
    Result,
    by_content,
    must,
    must_equal,
    read_reward,
    read_signal,
    tensors,
)
from recast.types import RecastError

READERS: dict[str, Callable[[Any, Example], Result]] = {
    "signal": read_signal,
    "reward": read_reward,
}
LEARNED = ("advantages", "nll_weight", "rewards")
"""What must not be part of a graph."""


def begin(kind: str, part: Part, parameters: Mapping[str, Any] | None, list_length: int) -> Trial:
    """The trial of a reward or a signal with its parameters set.

    Raises `RecastError` for a parameter it does not have and a resource that nobody knows.
    """
    part = with_parameters(kind, part, parameters or {})
    known = probe_resources(probe_groups(list_length, list_length=list_length))
    require_resources(f"{kind} {name_of(part)}", [part], known)
    return Trial(kind=kind, part=part, list_length=list_length)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A reward or a signal, and why it refused what it refused."""

    kind: str
    part: Part
    list_length: int
    refusals: list[RecastError] = field(default_factory=list)

    def results(self, constants: tuple[float, ...] = CONSTANTS) -> Iterator[tuple[Example, Result]]:
        """Every example that the function does not refuse, with what it gave."""
        ran = False
        for example in examples(self.list_length, constants=constants):
            result = self.run(example)
            if result is not None:
                ran = True
                yield example, result
        if not ran:
            raise AssertionError(f"{self.name} refuses every example: {self.refusals[-1]}")

    @property
    def name(self) -> str:
        return f"{self.kind} {name_of(self.part)}"

    def must(self, holds: Tensor, what: str, values: Tensor, example: Example) -> None:
        """Raise `AssertionError` for the first group for which it does not hold."""
        try:
            must(holds, what, values)
        except BrokenError as broken:
            raise self._failure(broken, example) from None

    def run(self, example: Example) -> Result | None:
        """What the function gives for an example, read against the contract.

        None where it refuses a group that is too small, or the presence or lack of weights, by a
        `RecastError` that says `group_size` or `weights`.
        """
        try:
            return self._run(example)
        except BrokenError as broken:
            raise self._failure(broken, example) from None
        except RecastError as error:
            is_largest = example.rewards.shape[1] == LARGEST * self.list_length
            if not ("weights" in str(error) or ("group_size" in str(error) and not is_largest)):
                raise
            self.refusals.append(error)
            return None
        except Exception as error:
            first = str(error).partition("\n")[0]
            what = f"fails with {type(error).__name__} ({first})"
            raise AssertionError(f"{self.name} {what} on {example.show(None)}") from error

    def check_orders(self, kinds: tuple[str, ...], permutable: bool, per_prompt: bool) -> None:
        """The rows, the prompts in another order and more padding give the same, reordered."""
        for example in without_ties(kinds, self.list_length) if permutable else ():
            rows = orders(example.rewards.shape[1], self.list_length)
            what = "does not follow a permutation of the rollouts (see permutable)"
            self._compare(example, [(example.with_rows(order), what) for order in rows])
        for example in examples(self.list_length, sizes=(LARGEST,), constants=()):
            what = "changes when the targets get one more column of padding"
            others = [(example.with_padded_targets(), what)]
            if per_prompt:
                what = "does not follow a permutation of the prompts (see per_prompt)"
                prompts = orders(len(example.kinds))
                others += [(example.with_prompts(order), what) for order in prompts]
            self._compare(example, others)

    def _compare(self, example: Example, others: list[tuple[Example, str]]) -> None:
        """The others give the same for the prompt of the same id and the same rollout."""
        result = self.run(example)
        for other, what in others:
            found = self.run(other)
            if result is None or found is None:
                return
            wanted = by_content(result, example)
            try:
                must_equal(by_content(found, other), wanted, what, tolerance=1e-4)
            except BrokenError as broken:
                raise self._failure(broken, example) from None

    def _run(self, example: Example) -> Result:
        before = {name: value.clone() for name, value in tensors(example).items()}
        state = torch.get_rng_state()
        returned = self._call(example)
        untouched = torch.equal(state, torch.get_rng_state())
        must(untouched, "draws from torch's global generator (use groups.uniforms)")
        for name, value in tensors(example).items():
            same = value.shape == before[name].shape and bool((value == before[name]).all())
            must(same, f"changes {name} of its input")
        read = READERS[self.kind]
        result = read(returned, example)
        if example.constant is not None:
            return result
        again = read(self._call(example), example)
        must_equal(again, result, "gives something else for the same input again", tolerance=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # float() of a tensor in a graph warns
            graph = read(self._call(example.with_gradient()), example)
        for name in LEARNED:
            free = name not in graph or not graph[name].requires_grad
            must(free, f"gives {name} with a gradient (detach what comes from log-probabilities)")
        return result

    def _call(self, example: Example) -> Any:
        resources = probe_resources(example.groups, list_length=self.list_length)
        given = [example.groups] + [example.rewards] * (self.kind == "signal")
        return supply(self.part, resources)(*given)

    def _failure(self, broken: BrokenError, example: Example) -> AssertionError:
        return AssertionError(f"{self.name} {broken.what} on {example.show(broken.row)}")
