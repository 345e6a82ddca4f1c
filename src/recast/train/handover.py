"""The weights of a policy in training, to the server that writes its thoughts: a policy and a step
in, the same weights on the server out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recast.methods.parts import Part, parameters
from recast.policy.folder import ADAPTERS
from recast.policy.load import Policy
from recast.policy.save import save_weights
from recast.policy.weights import no_bars
from recast.rollout.server import Server, connect
from recast.run.files import remove_whole, staged_folder
from recast.run.world import once
from recast.types import require

SERVED = "served"
"""Folder of a run: `RUN/served/20` are the weights behind step 20, which were handed over last."""


def server_of(sampler: Part) -> Server | None:
    """The server that a sampler's parameters name, asked what it serves; None where they name none.

    Raises `RecastError` when it does not answer, and for settings of one where there is none.
    """
    asked: dict[str, Any] = {"timeout_s": 600.0, "max_staleness": 0}
    given = {name: parameters(sampler).get(name, asked[name]) for name in asked}
    url = parameters(sampler).get("server")
    if url is not None:
        return connect(url, **given)
    for name, value in given.items():
        need = "the policy writes its thoughts itself, give a server or leave it out"
        require(value == asked[name], f"sampler_args.{name}", value, need)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """To whom, and from where."""

    server: Server
    policy: str
    """Folder that the run begins from: the weights before its first step."""
    run: str
    """Its own folder."""

    def refresh(self, policy: Policy, step: int) -> None:
        """Hand the weights over unless those that the server has are fresh enough for this step; of
        several ranks the first does."""
        if not self.server.is_fresh(step):
            once(partial(self._hand_over, policy, step))
            self.server.step = step

    def _hand_over(self, policy: Policy, step: int) -> None:
        folder = Path(self.policy)
        if step:
            folder = Path(self.run) / SERVED / str(step)
            remove_whole(folder)  # of a run that was ended there
            with staged_folder(folder) as stage, no_bars():
                save_weights(policy.model, stage, masters=False)
        need = "it holds adapters alone, which no server takes: begin from a policy as a whole"
        require(not (folder / ADAPTERS).exists(), "policy", self.policy, need)
        self.server.hand_over(folder, step)
        if step:
            for older in folder.parent.iterdir():
                if older != folder:
                    remove_whole(older)
