"""Adapters under the packed forward: against plain PEFT, against full copies, on disk."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_walk import failure, rl_args, rl_config, weights
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from recast import cli
from recast.config import LoRAConfig
from recast.items.catalog import load_catalog
from recast.losses import kl_k3
from recast.methods.parts import needs, supply
from recast.methods.table import METHODS
from recast.policy.load import Policy, disable_dropout, load_policy, save_policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.lora import add_adapters, without_adapters
from recast.rl import train_rl
from recast.rollout import beam
from recast.rollout.add_gt import add_gt
from recast.train.actor import Actor, trained_parameters, update
from recast.train.reference import frozen_reference
from recast.types import Prompts, RecastError, Signal

# Of PEFT itself, whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NAMES = ("llama", "qwen3")
RUNS = ("recast", "openonerec_rl", "rere")
KL_COEF = 0.1
ALONE = LoRAConfig(rank=2, merge=False)


def adapted(policy: Policy, rank: int = 4) -> Policy:
    """The policy with adapters that do something: B is not 0."""
    model = add_adapters(policy.model, LoRAConfig(rank=rank), "start", seed=0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return replace(policy, model=model)


def plain_peft(policy: Policy, start: PreTrainedModel) -> Any:
    """The same adapters in transformers' own attention, by PEFT alone."""
    settings = copy.copy(policy.model.peft_config["default"])
    settings.base_model_name_or_path = None
    other = get_peft_model(tiny.twin(start), settings)
    other.load_state_dict(policy.model.state_dict())
    return other.eval()


def prompts_of(policy: Policy) -> Prompts:
    return tiny.make_prompts(policy.catalog, [[1, 2, 3, 4], [7], [5, 6]], [[0], [3], [6]])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_adapters_change_what_peft_changes_and_off_nothing_is_left(name: str) -> None:
    start = tiny.tiny_policy(name, tiny.tiny_catalog())
    frozen = copy.deepcopy(start)
    policy = adapted(start)
    prompts = prompts_of(policy)
    branches = policy.catalog.tokens_of(torch.arange(8)).expand(3, -1, -1)
    on = branch_logprobs(policy, prompts, branches, "full")
    plain = plain_peft(policy, frozen.model)
    for row in range(3):
        for item in range(8):
            wanted = naive.branch_logprobs(plain, prompts, row, branches[row, item].tolist())
            torch.testing.assert_close(on[row, item], wanted, rtol=1e-4, atol=1e-4)
    wanted = branch_logprobs(frozen, prompts, branches, "full")
    assert (on - wanted).abs().max() > 0.01
    with without_adapters(policy.model):
        off = branch_logprobs(policy, prompts, branches, "full")
    assert naive.relative_error(off, wanted) <= 1e-6
    mask = torch.ones_like(branches, dtype=torch.bool)
    again = frozen_reference(policy, "full")(prompts, branches, mask, None)
    assert naive.relative_error(again, wanted) <= 1e-6
    assert branch_logprobs(policy, prompts, branches, "full").equal(on)


def _signal(policy: Policy, name: str) -> Signal:
    """Of row 0, whose target may be in no beam, and of rows whose second beam is their target."""
    method = METHODS[name]
    prompts = prompts_of(policy)
    second = beam(policy, prompts, 4).items[:, 1:2]
    targets = torch.cat([prompts.target_items[:1], second[1:]])
    prompts = tiny.with_targets(policy.catalog, prompts, targets)
    groups = beam(policy, prompts, 4)
    if method.add_gt:
        groups = add_gt(groups)
    signal: Signal = supply(method.signal, {"natural_frac": 0.1})(groups, method.reward(groups))
    return signal


def _naive_gradient(policy: Policy, start: PreTrainedModel, signal: Signal, name: str) -> Tensor:
    """A copy of the prompt per rollout through plain PEFT: loss and KL over what is kept."""
    method, model = METHODS[name], plain_peft(policy, start)
    groups = signal.groups
    mask = groups.loss_mask & signal.keep[..., None]

    def logprobs() -> Tensor:
        rows = [
            [naive.branch_logprobs(model, groups.prompts, b, tokens) for tokens in rollouts]
            for b, rollouts in enumerate(groups.tokens.tolist())
        ]
        return torch.stack([torch.stack(row) for row in rows])

    with torch.no_grad(), model.disable_adapter():
        reference = logprobs()
    own = logprobs()
    given = {
        "logprobs": own,
        "old_logprobs": own.detach(),
        "ref_logprobs": reference,
        "advantages": signal.advantages.expand(own.shape),
        "loss_mask": mask,
    }
    values = method.loss(**{k: v for k, v in given.items() if needs(method.loss, k)})
    unit = mask
    while unit.ndim > values.ndim:
        unit = unit.any(-1)
    total = torch.where(unit, values, 0.0).sum() / unit.sum()
    total = total + KL_COEF * torch.where(mask, kl_k3(own, reference), 0.0).sum() / mask.sum()
    model.zero_grad(set_to_none=True)
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_naive_copies_and_the_adapters_alone(
    name: str, method: str, checkpointing: bool
) -> None:
    start = tiny.tiny_policy(name, tiny.tiny_catalog())
    frozen = copy.deepcopy(start.model)
    policy = adapted(start)
    signal = _signal(policy, method)
    wanted = _naive_gradient(policy, frozen, signal, method)
    if checkpointing:
        disable_dropout(policy.model)
        policy.model.activation_checkpointing_enable()
    actor = Actor(
        policy=policy,
        reference=frozen_reference(policy, "full"),
        optimizer=torch.optim.SGD(trained_parameters(policy), lr=0.1),
        loss=METHODS[method].loss,
        kl_coef=KL_COEF,
        kl_rollouts="kept",
        max_grad_norm=1e9,
        space="full",
        micro_batch_tokens=40,
        updates_per_rollout=1,
    )
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    update(actor, signal)
    found = torch.cat([p.grad.flatten() for p in trained_parameters(policy)])
    assert naive.relative_error(found, wanted) <= 1e-5
    for key, parameter in policy.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in key)
    moved = {k for k, v in policy.model.state_dict().items() if not v.equal(before[k])}
    assert moved == {key for key in before if "lora_" in key}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_saved_loads_where_it_should(name: str, tmp_path: Path) -> None:
    start = tiny.tiny_policy(name, tiny.tiny_catalog())
    save_policy(start, tmp_path / "start")
    policy = load_policy(tmp_path / "start")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "start"), seed=0)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.fill_(0.05)
    policy = replace(policy, model=model)
    tokens = torch.tensor([[1, 4, 6, 9, 3]])
    wanted = model(input_ids=tokens, use_cache=False).logits
    save_policy(policy, tmp_path / "merged")
    save_policy(policy, tmp_path / "adapters", merge=False)
    assert model(input_ids=tokens, use_cache=False).logits.equal(wanted)

    def check(other: Any) -> None:
        found = other(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    check(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    check(load_policy(tmp_path / "merged").model)
    assert "model.safetensors" not in {file.name for file in (tmp_path / "adapters").iterdir()}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    check(PeftModel.from_pretrained(base, tmp_path / "adapters"))
    check(load_policy(tmp_path / "adapters").model)


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_adapters(walk: Path, tmp_path: Path, name: str, method: str) -> None:
    catalog = load_catalog(walk / "catalog")
    save_policy(replace(tiny.tiny_policy(name, catalog), window=8), tmp_path / "start")
    args = (f"--method={method}", "--lora.rank=2", "--lr=0.01", "--group_size=16")
    cli.main([str(x) for x in rl_args(walk, tmp_path / "run", *args, policy=tmp_path / "start")])
    before, after = load_file(tmp_path / "start" / "model.safetensors"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    moved = {key for key in before if not before[key].equal(after[key])}
    assert moved
    assert all("_proj" in key for key in moved)
    load_policy(tmp_path / "run" / "policy")


def test_adapters_alone_go_on_as_a_policy(walk: Path, tmp_path: Path) -> None:
    start = walk / "sft" / "policy"
    args = ("--lora.rank=2", "--lr=0.01")
    cli.main([str(x) for x in rl_args(walk, tmp_path / "a", *args, "--lora.merge=false")])
    cli.main([str(x) for x in rl_args(walk, tmp_path / "b", *args)])
    alone, merged = load_policy(tmp_path / "a" / "policy"), load_policy(tmp_path / "b" / "policy")
    for key, value in alone.model.state_dict().items():
        torch.testing.assert_close(value, merged.model.state_dict()[key])
    assert alone.model.state_dict().keys() == load_policy(start).model.state_dict().keys()
    again = tmp_path / "a" / "policy"
    cli.main([str(x) for x in rl_args(walk, tmp_path / "c", policy=again)])
    # The folder of the base is named whole, so that the adapters load from anywhere.
    settings = json.loads((again / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(start.absolute())
    with pytest.raises(RecastError, match="holds adapters alone itself"):
        train_rl(rl_config(walk, tmp_path / "d", policy=str(again), lora=ALONE))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lora.alpha=4",), "lora.alpha is 4.0: it belongs to lora.rank, give one"),
        (("--lora.rank=0",), "lora.rank is 0: give 1 or more"),
        (("--lora.rank=2", "--lora.layers=nothing"), "lora.layers is 'nothing' (Target modules"),
        (("--lora.rank=2", "--lora.layers=lm_head,q_proj"), "take no adapter, leave them out"),
        (("--lora.rank=2", "--lora.layers="), "lora.layers is '': give a name or leave it out"),
        (("--lora.rank=2", "--lora.layers=q_proj,nope"), "lora.layers is 'nope': the model has no"),
        (("--lora.rnk=2",), "--lora.rnk is no flag of recast rl: did you mean --lora.rank?"),
    ],
)
def test_settings_that_do_not_fit(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    text, code = failure(capsys, *map(str, rl_args(walk, tmp_path / "run", *flags)))
    assert message in text
    assert code == 2
    assert not (tmp_path / "run").exists()


def test_without_peft_the_remedy_is_named(
    walk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    text, code = failure(capsys, *map(str, rl_args(walk, tmp_path / "run", "--lora.rank=2")))
    assert (text, code) == ('adapters need PEFT: pip install "recast-rl[lora]"', 2)


def test_adapters_whose_base_is_gone(tmp_path: Path) -> None:
    start = tiny.tiny_policy("llama", tiny.tiny_catalog())
    model = add_adapters(start.model, LoRAConfig(rank=2), str(tmp_path / "gone"), seed=0)
    save_policy(replace(start, model=model), tmp_path / "adapters", merge=False)
    with pytest.raises(RecastError, match="which is no folder: set base_model_name_or_path"):
        load_policy(tmp_path / "adapters")


def test_adapters_that_lost_a_weight(tmp_path: Path) -> None:
    """PEFT alone would take fresh ones in its place, which do nothing."""
    save_policy(tiny.tiny_policy("llama", tiny.tiny_catalog()), tmp_path / "start")
    policy = load_policy(tmp_path / "start")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "start"), seed=0)
    save_policy(replace(policy, model=model), tmp_path / "adapters", merge=False)
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    stored = load_file(file)
    stored.pop(next(iter(stored)))
    save_file(stored, file)
    with pytest.raises(RecastError, match="1 weights missing or unknown"):
        load_policy(tmp_path / "adapters")


def test_adapters_that_hold_nan(tmp_path: Path) -> None:
    save_policy(tiny.tiny_policy("llama", tiny.tiny_catalog()), tmp_path / "start")
    policy = load_policy(tmp_path / "start")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(tmp_path / "start"), seed=0)
    save_policy(replace(policy, model=model), tmp_path / "adapters", merge=False)
    file = tmp_path / "adapters" / "adapter_model.safetensors"
    save_file({name: value * torch.nan for name, value in load_file(file).items()}, file)
    with pytest.raises(RecastError, match=r"adapters: .* holds NaN or infinity"):
        load_policy(tmp_path / "adapters")


def _saved_adapters(folder: Path) -> Path:
    """Adapters alone of a policy in `start`."""
    save_policy(tiny.tiny_policy("llama", tiny.tiny_catalog()), folder / "start")
    policy = load_policy(folder / "start")
    model = add_adapters(policy.model, LoRAConfig(rank=2), str(folder / "start"), seed=0)
    save_policy(replace(policy, model=model), folder / "adapters", merge=False)
    load_policy(folder / "adapters")
    return folder / "adapters"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 64}, "has lora_alpha 64, trained with 4.*: set it back"),
        ({"lora_alpha": "x"}, "has lora_alpha 'x', which is no number above 0"),
        ({"r": 10**9}, "has r 1000000000, which is no number above 0"),
        ({"peft_type": "LOHA"}, "has peft_type 'LOHA', Recast saves 'LORA'"),
        ({"use_rslora": True}, "has use_rslora True, Recast saves False"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', Recast saves True"),
        ({"megatron_core": "os"}, "has megatron_core 'os', Recast saves"),
        ({"base_model_name_or_path": 3}, "adapters of 3, which is no folder"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_adapters_whose_settings_were_edited(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = _saved_adapters(tmp_path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(RecastError, match=message):
        load_policy(file.parent)


def test_adapters_whose_base_was_trained_on(tmp_path: Path) -> None:
    folder = _saved_adapters(tmp_path)
    file = tmp_path / "start" / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"][0] += 1e-3
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(RecastError, match="start, whose weights have changed since: give the pol"):
        load_policy(folder)
    (folder / "base.json").unlink()  # of a release that noted nothing
    load_policy(folder)
