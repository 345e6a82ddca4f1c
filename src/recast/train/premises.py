"""What training presupposes of its prompts, targets, tokens and reward: the first rows in, nothing
or one line out, before there is a run folder. No model runs and nothing is rolled out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recast.draws import uniforms
from recast.evaluation.rank import sample_rows
from recast.groups import most_probable_first, select
from recast.items.catalog import Catalog
from recast.methods.fault import Fault
from recast.methods.guard import ask_reward, raise_fault
from recast.methods.parts import Part
from recast.policy.body import text_config
from recast.policy.load import Policy
from recast.policy.prompts import write_items
from recast.policy.tasks import Task
from recast.rewards import any_hit
from recast.types import Prompts, RecastError, RolloutGroups, Sequences

_ROWS = 4  # whose targets are held against other items
_LOOKED_AT = 64  # rows, or sequences, of supervised training
_LEAST_ALIKE = 4  # rows: fewer that all end in the same item as they go on with are chance
_ROUNDING = 1e-5  # of a cosine, or of a sum in another order


def check_training(
    policy: Policy, task: Task, rows: Int[Tensor, " N"], sequences: Sequences
) -> None:
    """Raise `RecastError` for the first of the rows, or of what is read of them, that supervised
    training cannot learn from; a seeded sample is built."""
    check_tokens(policy)
    check_lengths(policy, rows, task.lengths(rows))
    check_prompts(policy, task.prompts(sample_rows(rows, _LOOKED_AT)))
    check_sequences(policy, sequences)


def check_lengths(policy: Policy, rows: Int[Tensor, " N"], lengths: Int[Tensor, " N"]) -> None:
    """Raise `RecastError` for a row whose prompt is empty, or does not fit into the model's context
    with an item behind it."""
    if not len(rows):
        return
    if int(lengths.min()) < 1:
        row = int(rows[lengths.argmin()])
        raise RecastError(f"row {row} has a prompt of 0 tokens: give it a text or a history")
    context = getattr(text_config(policy.model), "max_position_embeddings", None)
    longest, item = int(lengths.max()), policy.catalog.max_length
    if context is not None and longest + item > context:
        row = int(rows[lengths.argmax()])
        raise RecastError(
            f"row {row} has a prompt of {longest:,} tokens, and the policy a context of "
            f"{context:,}, of which an item takes {item}: train a policy with shorter prompts or a "
            "longer context"
        )


def check_tokens(policy: Policy) -> None:
    """Raise `RecastError` unless the policy's tokenizer reads every name of semantic IDs as the one
    token that the model writes, whatever stands around it."""
    tokenizer, catalog = policy.tokenizer, policy.catalog
    if tokenizer is None or not catalog.codebook_sizes:
        return
    names = catalog.names.of(catalog.codebook_sizes)
    tokens = list(range(catalog.first_token, catalog.first_token + len(names)))
    if tokenizer.encode("".join(names), add_special_tokens=False) == tokens:
        return
    for token, name in zip(tokens, names, strict=True):
        read = tokenizer.encode(name + name, add_special_tokens=False)
        if read != [token, token]:
            raise RecastError(
                f"the policy's tokenizer reads {name} twice as {read[:8]}, where the model writes "
                f"token {token} for each: use the tokenizer that was saved with the policy"
            )
    raise RecastError(
        f"the policy's tokenizer reads the names {names[0]} to {names[-1]} in a row as others: use "
        "the tokenizer that was saved with the policy"
    )


def check_prompts(policy: Policy, prompts: Prompts) -> None:
    """Raise `RecastError` for a prompt with a token that the model does not have, a row without a
    target, a target that the trie does not lead to, and prompts that give the answer away."""
    catalog, rows = policy.catalog, prompts.row_ids
    place = torch.arange(prompts.tokens.shape[1], device=prompts.tokens.device)
    known = policy.model.get_input_embeddings().weight.shape[0]
    strange = (prompts.tokens < 0) | (prompts.tokens >= known)
    strange &= place < prompts.lengths[:, None]
    is_target = prompts.target_items >= 0
    closed = is_target & ~reachable(catalog, prompts)
    if (row := _first(strange.any(1))) is not None:
        raise RecastError(
            f"row {int(rows[row])} has the token {int(prompts.tokens[row][strange[row]][0])} in "
            f"its prompt, and the policy {known:,} tokens: use the tokenizer that was saved with it"
        )
    if (row := _first(~is_target.any(1))) is not None:
        raise RecastError(
            f"row {int(rows[row])} has no target that is in the catalogue: prepare the data "
            "without such rows, or make a catalogue that holds their items"
        )
    if (row := _first(closed.any(1))) is not None:
        item = int(prompts.target_items[row][closed[row]][0])
        was_seen = bool((prompts.seen[row] == item).any())
        why = "it is of the row's history, which is no candidate" if was_seen else "it has no path"
        raise RecastError(
            f"row {int(rows[row])} has the target {catalog.item_ids[item]!r} (tokens "
            f"{catalog.tokens[item].tolist()}), which the trie does not lead to ({why}): prepare "
            "the data without such rows, or make the catalogue from it with `recast tokenize`"
        )
    shown = _ends_in_target(prompts) & ~is_history(catalog, prompts)
    if len(prompts) >= _LEAST_ALIKE and bool(shown.all()):  # of some it may be chance
        raise RecastError(
            f"row {int(rows[0])} has a prompt that ends in its own target "
            f"{catalog.item_ids[int(prompts.target_items[0, 0])]!r}, like all of the {len(rows)} "
            "looked at: leave the answer out of the prompts"
        )


def reachable(catalog: Catalog, prompts: Prompts) -> Bool[Tensor, "B T"]:
    """Which targets the trie leads to, past the row's seen items."""
    leaf = catalog.leaf_of(prompts.targets, prompts.domains)
    level, excluded = catalog.num_levels, catalog.trie.excluded(prompts.seen)
    return (leaf >= 0) & catalog.trie.is_open(level, leaf.clamp(min=0), excluded)


def is_history(catalog: Catalog, prompts: Prompts) -> Bool[Tensor, " B"]:
    """Which prompts are BOS and the items of their history, and nothing else."""
    tokens, lengths = write_items(catalog, prompts.history)
    width = min(tokens.shape[1], prompts.tokens.shape[1])
    place = torch.arange(width, device=tokens.device)
    same = (tokens[:, :width] == prompts.tokens[:, :width]) | (place >= lengths[:, None])
    return (lengths == prompts.lengths) & same.all(1)


def _ends_in_target(prompts: Prompts) -> Bool[Tensor, " B"]:
    target, mask = prompts.targets[:, 0], prompts.target_mask[:, 0]
    place = torch.arange(target.shape[1], device=target.device)
    place = prompts.lengths[:, None] - mask.sum(1, keepdim=True) + place
    last = prompts.tokens.gather(1, place.clamp(min=0, max=prompts.tokens.shape[1] - 1))
    return ((last == target) & (place >= 0) | ~mask).all(1)


def check_sequences(policy: Policy, sequences: Sequences) -> None:
    """Raise `RecastError` for a sequence with nothing to learn, with a loss on its first token,
    which nothing precedes, or without one on its last, which is the answer's."""
    batch = torch.arange(min(len(sequences), _LOOKED_AT), device=sequences.lengths.device)
    tokens, loss_mask = sequences.batch(batch)
    last = loss_mask.gather(1, sequences.lengths[batch, None] - 1)[:, 0]
    known = policy.model.get_input_embeddings().weight.shape[0]
    for wrong, what in (
        (loss_mask[:, 0], "has a loss on its first token, which nothing precedes"),
        (~last, "has no loss on its last token, which belongs to the answer"),
        ((loss_mask & (tokens >= known)).any(1), f"has a token beyond the policy's {known:,}"),
    ):
        if (row := _first(wrong)) is not None:
            shown = tokens[row, : int(sequences.lengths[row])].tolist()
            raise RecastError(
                f"training sequence {row} {what}: {shown[:4]} ... {shown[-8:]}: let the loss mask "
                "cover the answer, its end included, and nothing before it"
            )


def check_target_is_best(
    reward: Part,
    catalog: Catalog,
    prompts: Prompts,
    num_rollouts: int,
    *,
    list_length: int = 1,
    seed: int = 0,
    folder: str = "",
) -> None:
    """Raise `RecastError` for a reward that gives another item more than a target of its row, on
    groups made up of a target and other items; one that reads a ranker rates by that instead."""
    if follows_ranker(reward):
        return
    few = select(prompts, torch.arange(min(_ROWS, len(prompts)), device=prompts.tokens.device))
    groups = target_among_others(catalog, few, num_rollouts, list_length=list_length, seed=seed)
    rewards = ask_reward(reward, groups, folder)
    fault = below_others(groups, rewards, catalog)
    raise_fault("reward", reward, fault, (groups,), folder, {"rewards": rewards})


def follows_ranker(reward: Part) -> bool:
    """Whether a reward rates items by a ranker, so that a target need not be the best of them."""
    return "ranker" in getattr(reward, "keywords", {})


def below_others(
    groups: RolloutGroups, rewards: Float[Tensor, "B G"], catalog: Catalog
) -> Fault | None:
    """The first group in which a rollout that is no target is rewarded above all that are one."""
    is_target = any_hit(groups) > 0
    target = rewards.masked_fill(~is_target, -torch.inf).amax(1)
    others = rewards.masked_fill(is_target | ~groups.exists, -torch.inf)
    over = others.amax(1) > target + _ROUNDING * target.abs().clamp(min=1)
    row = _first(over & is_target.any(1))
    if row is None:
        return None
    item = int(groups.items[row, int(others[row].argmax())])
    other = f"item {catalog.item_ids[item]!r}" if item >= 0 else "a rollout that is no item"
    wanted = catalog.item_ids[int(groups.prompts.target_items[row, 0])]
    return Fault(
        f"the target {wanted!r} of row {int(groups.prompts.row_ids[row])} {float(target[row]):g} "
        f"and {other} {float(others[row].max()):g}: mend it so that no item is above the target, "
        "or give --target_is_best false if that is meant",
        row,
    )


def target_among_others(
    catalog: Catalog, prompts: Prompts, size: int, *, list_length: int = 1, seed: int = 0
) -> RolloutGroups:
    """Groups as a sampler makes them: a target first, then candidates that are none, its nearest
    neighbour in the trie and seeded draws; all tokens are equally probable."""
    draws = uniforms(seed, 0, prompts.row_ids, "premises", size).to(catalog.device)
    items = torch.full((len(prompts), size), -1, device=catalog.device)
    for row in range(len(prompts)):
        targets = prompts.target_items[row][prompts.target_items[row] >= 0]
        leaf = catalog.trie.leaves[targets].long()
        others = _others(catalog, leaf, prompts.seen[row], int(prompts.domains[row]))
        items[row, 0] = targets[0]
        if len(others):
            items[row, 1:] = others[(draws[row, 1:] * len(others)).long()]
            nearest = (catalog.trie.leaves[others].long() - leaf[0]).abs().argmin()
            items[row, 1:2] = others[nearest]
    tokens, mask = catalog.tokens_of(items), catalog.mask_of(items)
    groups = RolloutGroups(
        prompts=prompts,
        tokens=tokens,
        items=items,
        predictions=catalog.sids_of(tokens).masked_fill((items < 0)[..., None], -1)[:, :, None],
        rollout_logprobs=-mask.float(),
        target_logprobs=-prompts.target_mask.float(),
        loss_mask=mask,
        seed=seed,
        step=0,
    )
    return groups if list_length > 1 else most_probable_first(groups)


def _others(
    catalog: Catalog, leaves: Int[Tensor, " T"], seen: Int[Tensor, " S"], domain: int
) -> Int[Tensor, " N"]:
    """Candidates of other leaves that the row has not seen."""
    free = catalog.is_written & (catalog.domain_of == domain)
    free &= ~torch.isin(catalog.trie.leaves.long(), leaves)
    free[seen[seen >= 0]] = False
    return free.nonzero()[:, 0]


def _first(where: Bool[Tensor, " B"]) -> int | None:
    """The first row for which something holds."""
    return int(where.int().argmax()) if bool(where.any()) else None
