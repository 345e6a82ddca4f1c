"""`recast inspect`: one row as the policy sees it, what a method makes of it, and a step, as text.

Enters: a data folder, a policy and the settings of a step. Leaves: text of at most 100 columns,
but for what the data itself holds. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from textwrap import wrap
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from recast.config import InspectConfig, LoRAConfig
from recast.config.devices import parse_devices
from recast.evaluation.rank import sample_rows
from recast.methods.guard import ask_reward, raise_fault
from recast.methods.parts import name_of
from recast.policy.load import Policy
from recast.policy.logprobs import branch_logprobs
from recast.policy.memory import size
from recast.policy.needs import RANK, needs_of, needs_text
from recast.policy.tasks import Task
from recast.report.devices import Step, described, shape_of
from recast.rl import learn, roll_out
from recast.rollout.add_gt import add_gt
from recast.run.doors import enter
from recast.run.peak import peak_bytes
from recast.train.premises import below_others, follows_ranker, is_history, target_among_others
from recast.train.state import LoopState
from recast.train.step import StepSetup, draw_batches, drawn_split, load_step, set_up_step
from recast.types import Prompts, RolloutGroups, Thoughts, require

_WIDTH = 100
_SHOWN = 8  # rollouts
_MOST_LENGTHS = 2000  # rows whose prompts are measured
_MOST_TOKENS = 160  # of a prompt that are written out: half from either end
_FEW = 4  # prompts of a step that is timed to see what a whole one takes
_PATIENCE_S = 5.0  # for a whole step
_MARGIN = " " * 10


def inspect_policy(config: InspectConfig) -> str:
    """One prompt, its target and reward, what the policy rolls out for it, lengths and a step.

    Raises `RecastError` for whatever `recast rl` would refuse with the same settings, and for a row
    that is none of the split.
    """
    enter(config, InspectConfig)
    method, policy, task = load_step(config)
    rows = task.rows(config.split)
    count = config.max_rollout_batches if method.fill_batch else 1
    batches = draw_batches(config, task, count, config.split)
    row = int(batches[0, 0]) if config.row is None else config.row
    split = drawn_split(task, config.split)
    remedy = f"give one of split {split}, such as {int(batches[0, 0])}, or leave it out"
    require(bool((rows == row).any()), "row", row, remedy)
    setup = set_up_step(config, method, policy, task, batches)
    prompts = task.prompts(torch.tensor([row]))
    with torch.no_grad(), policy.computing_in(config.precision):
        groups = setup.search.roll_out(0, prompts)
    sections = [
        shown_prompt(policy, task, prompts, split),
        _target(setup, groups),
        _rollouts(setup, groups),
        _lengths(task, rows, split),
        _step(setup, config.lora),
    ]
    if config.devices:
        sections.append(_devices(setup, config.devices, task.lengths(rows)))
    return "\n".join(line for section in sections for line in section)


def shown_prompt(policy: Policy, task: Task, prompts: Prompts, split: str) -> Iterator[str]:
    """The row, its prompt as text, as tokens and, where it is a history, item by item."""
    row, tokens = int(prompts.row_ids[0]), prompts.tokens[0, : int(prompts.lengths[0])].tolist()
    user = int(task.users(prompts.row_ids.cpu())[0])
    name = task.tasks[int(task.task_of(prompts.row_ids.cpu())[0])]
    yield _cut(f"prompt    row {row} of {split}, task {name}, user {user}: {len(tokens):,} tokens")
    if policy.tokenizer is not None:
        yield from _block(policy.tokenizer.decode(tokens, skip_special_tokens=False))
    numbers, half = list(map(str, tokens)), _MOST_TOKENS // 2
    if len(tokens) > _MOST_TOKENS:
        left_out = f"... {len(tokens) - 2 * half:,} tokens more ..."
        numbers[half:-half] = [left_out]
    yield from _wrapped(" ".join(numbers))
    if bool(is_history(policy.catalog, prompts)[0]):
        items = prompts.history[0][prompts.history[0] >= 0].tolist()
        yield _MARGIN + f"{tokens[0]} begins, then {len(items)} items, oldest first:"
        for item in items:
            yield _cut(f"{_MARGIN}{_written(policy, item)}  {_named(policy, item)}")


def _target(setup: StepSetup, groups: RolloutGroups) -> Iterator[str]:
    """Every target with its reward and log-probability; whether it is the best of its group."""
    policy, prompts, method = setup.policy, groups.prompts, setup.method
    with torch.no_grad(), policy.computing_in(setup.precision):
        logprobs = branch_logprobs(
            policy, prompts, prompts.targets, method.space, prompts.target_mask
        )
    items = prompts.target_items[0][prompts.target_items[0] >= 0].tolist()
    for place, item in enumerate(items):
        head = "target" if len(items) == 1 else f"target {place + 1}"
        yield _cut(f"{head:<10}{_written(policy, item)}  {_named(policy, item)}")
        each = logprobs[0, place][prompts.target_mask[0, place]].tolist()
        shown = " ".join(f"{value:.2f}" for value in each)
        tokens = prompts.targets[0, place][prompts.target_mask[0, place]].tolist()
        yield f"{_MARGIN}tokens {' '.join(map(str, tokens))}: the trie leads to them"
        yield f"{_MARGIN}log-probability {shown}, in sum {sum(each):.2f} ({method.space})"
    known = "the policy has no tokenizer"
    if policy.tokenizer is not None:
        known = "each is one token of the tokenizer"
    catalog = policy.catalog
    if catalog.codebook_sizes:
        sizes = " + ".join(map(str, catalog.codebook_sizes))
        last = catalog.first_token + sum(catalog.codebook_sizes) - 1
        yield f"{_MARGIN}codes {sizes} are tokens {catalog.first_token} to {last}: {known}"
    if setup.search.sampler is None:
        yield f"reward    {method.label} makes no rollouts: it learns from the target alone"
        return
    yield _reward(setup, groups)


def _reward(setup: StepSetup, groups: RolloutGroups) -> str:
    """The target's reward among the rollouts and among made-up ones, against the best other."""
    search, reward, catalog = setup.search, setup.method.reward, setup.policy.catalog
    made_up = target_among_others(
        catalog,
        groups.prompts,
        search.num_rollouts,
        list_length=setup.method.list_length,
        seed=search.seed,
    )
    best, other = -torch.inf, -torch.inf
    for tried in (add_gt(groups), made_up):
        rewards = ask_reward(reward, tried, search.folder)
        if not follows_ranker(reward):
            fault = below_others(tried, rewards, catalog)
            raise_fault("reward", reward, fault, (tried,), search.folder, {"rewards": rewards})
        is_target = (tried.items[0, :, None] == groups.prompts.target_items[0]).any(-1)
        best = max(best, float(rewards[0][is_target].max()))
        rest = rewards[0][~is_target & tried.exists[0]]
        other = max([other, *rest.tolist()])
    against = "" if other == -torch.inf else f", other items at most {other:g}"
    verdict = "the highest" if best >= other else "not the highest"
    if follows_ranker(reward):
        verdict += ": it follows the ranker"
    return f"reward    {name_of(reward)} gives the target {best:g}{against}: {verdict}"


def _rollouts(setup: StepSetup, groups: RolloutGroups) -> Iterator[str]:
    """The first of the row's rollouts, a line each."""
    search = setup.search
    if search.sampler is None:
        return
    rewards = ask_reward(setup.method.reward, groups, search.folder)[0].tolist()
    total = (groups.rollout_logprobs * groups.loss_mask).sum(-1)[0].tolist()
    exists, items = groups.exists[0].tolist(), groups.items[0].tolist()
    count = min(_SHOWN, len(items))
    if groups.thoughts is not None:
        yield from _thoughts(setup.policy, groups.thoughts)
    yield f"rollouts  {count} of {len(items)} by {setup.method.sampler}: log-probability, reward"
    for place in range(count):
        if not exists[place]:
            yield f"{_MARGIN}no further path"
            continue
        tokens = groups.tokens[0, place][groups.loss_mask[0, place]].tolist()
        written, item = _spelled(setup.policy, tokens), items[place]
        name = _named(setup.policy, item) if item >= 0 else "no item"
        yield _cut(f"{_MARGIN}{total[place]:7.2f} {rewards[place]:6.3g}  {written}  {name}")


def _thoughts(policy: Policy, thoughts: Thoughts) -> Iterator[str]:
    """What the row's rollouts follow, a line each."""
    lengths, closed = thoughts.num_written[0].tolist(), thoughts.is_closed[0].tolist()
    for place, tokens in enumerate(thoughts.tokens[0].tolist()):
        text = policy.tokenizer.decode(tokens[: lengths[place]], skip_special_tokens=False)
        how = "closed" if closed[place] else "not closed"
        yield _cut(f"thought   {place + 1}, {lengths[place]} tokens, {how}: {text!r}")


def _lengths(task: Task, rows: Int[Tensor, " N"], split: str) -> Iterator[str]:
    """Prompt tokens of a split."""
    few = sample_rows(rows, _MOST_LENGTHS)
    lengths = task.lengths(few).double()
    of = f"{len(few):,} of {len(rows):,} rows" if len(few) < len(rows) else f"{len(rows):,} rows"
    middle, high = (float(lengths.quantile(share)) for share in (0.5, 0.9))
    longest = few[lengths.argmax()]
    yield (
        f"lengths   prompt tokens of {split} ({of}): median {middle:,.0f}, p90 {high:,.0f}, "
        f"longest {int(lengths.max()):,} (row {int(longest)})"
    )


class _Timed(NamedTuple):
    seconds: float
    phases: dict[str, float]


def _step(setup: StepSetup, lora: LoRAConfig) -> Iterator[str]:
    """What a step takes: measured, or where that is long, scaled from a few prompts."""
    size_of_step = setup.batches.shape[1]
    few = min(_FEW, size_of_step)
    timed = _time(replace(setup, batches=setup.batches[:, :few], surplus=setup.surplus[:, :few]))
    scale = size_of_step / few
    how = f"an estimate, {scale:g} times one of {few}"
    if timed.seconds * scale <= _PATIENCE_S:
        timed, scale, how = _time(setup), 1.0, "measured"
    phases = ", ".join(f"{name} {scale * value:.2f}" for name, value in timed.phases.items())
    group = setup.search.num_rollouts if setup.search.sampler else 0
    took = f"{scale * timed.seconds:.2f} s, {how}"
    yield f"step      {size_of_step} prompts of {group} rollouts: {took}"
    threads = f"{setup.threads} torch thread{'s' * (setup.threads > 1)}"
    most = size(peak_bytes(setup.policy.catalog.device))
    lines = [f"{phases}; {threads}, at most {most} in use so far", *setup.text.splitlines()]
    for line in (*lines, _needs(setup, lora)):
        yield from _wrapped(line)


def _needs(setup: StepSetup, lora: LoRAConfig) -> str:
    """What training holds of this model, all of it or adapters, and on which card."""
    rank, config = lora.rank or RANK, setup.policy.model.config
    whole = needs_of(config, reference=setup.actor.reference is not None)
    return needs_text(whole, needs_of(config, rank=rank, layers=lora.layers), rank)


def _devices(setup: StepSetup, devices: str, lengths: Int[Tensor, " N"]) -> Iterator[str]:
    """The step on such cards, for prompts of the mean length."""
    step = Step(
        prompts=setup.batches.shape[1],
        prompt_tokens=round(float(lengths.double().mean())),
        group_size=max(setup.search.num_rollouts, 1),
        item_tokens=setup.policy.catalog.max_length,
    )
    lines = described(
        shape_of(setup.policy.model),
        step,
        parse_devices(devices),
        has_reference=setup.actor.reference is not None,
    )
    for place, line in enumerate(lines):
        if place == 0:
            yield f"devices   {line}"
        elif len(line) <= _WIDTH - len(_MARGIN):
            yield f"{_MARGIN}{line}"
        else:
            yield from _wrapped(line)


def _time(setup: StepSetup) -> _Timed:
    """Seconds of a step and of its phases. The policy is another one afterwards."""
    state = LoopState(model=setup.policy.model, optimizer=setup.actor.optimizer, keep="last")
    setup.clock.read()
    began = time.perf_counter()
    metrics = learn(setup, state, roll_out(setup, state))
    seconds = time.perf_counter() - began
    names = [name for name in metrics if name.startswith("time/")]
    return _Timed(seconds, {name[5:].removesuffix("_s"): metrics[name] for name in names})


def _written(policy: Policy, item: int) -> str:
    """What an item writes."""
    length = int(policy.catalog.lengths[item])
    return _spelled(policy, policy.catalog.tokens[item, :length].tolist())


def _spelled(policy: Policy, tokens: list[int]) -> str:
    """Tokens by their names, where they have some, else as numbers."""
    catalog = policy.catalog
    if policy.tokenizer is not None and catalog.form is not None:
        return _plain(policy.tokenizer.decode(tokens))
    if policy.tokenizer is not None:
        known = policy.tokenizer.convert_ids_to_tokens(tokens)
        pairs = zip(tokens, known, strict=True)
        return _plain("".join(name or f"[{token}]" for token, name in pairs))
    if catalog.codebook_sizes:
        names = catalog.names.of(catalog.codebook_sizes)
        first, last = catalog.first_token, catalog.vocab_size
        return "".join(names[t - first] if first <= t < last else f"[{t}]" for t in tokens)
    return " ".join(map(str, tokens))


def _named(policy: Policy, item: int) -> str:
    """An item's id and text."""
    catalog = policy.catalog
    text = " ".join(catalog.texts[item].split())
    return f"{_plain(catalog.item_ids[item])!r} {_plain(text)}".rstrip()


def _plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."


def _block(text: str) -> Iterator[str]:
    """A text with its own line breaks, long lines broken anywhere, behind a bar."""
    width = _WIDTH - len(_MARGIN) - 2
    for line in map(_plain, text.split("\n")):
        for begin in range(0, max(len(line), 1), width):
            yield f"{_MARGIN}| {line[begin : begin + width]}"


def _wrapped(line: str) -> Iterator[str]:
    yield from wrap(line, _WIDTH, initial_indent=_MARGIN, subsequent_indent=_MARGIN)
