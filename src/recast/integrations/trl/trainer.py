"""The trainer: the packed one, with rollouts from a catalogue and advantages from a signal."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recast.integrations.trl.host import disable_gradient_checkpointing, unwrap_model_for_generation
from recast.integrations.trl.packed import PackedGRPOTrainer
from recast.items.catalog import Catalog
from recast.items.fan_out import fan_out
from recast.items.titles import check_writer
from recast.methods.guard import ask_sampler, ask_signal
from recast.methods.parts import Part, find_part, name_of, resources, supply, traits_of
from recast.methods.probe import probe_groups, probe_resources
from recast.policy.extend import is_policy
from recast.policy.load import as_policy, read_record
from recast.policy.prompts import make_prompts
from recast.rewards.hit import first_hit
from recast.train.learnability import group_metrics
from recast.types import Draw, RecastError, RolloutGroups, Signal, require


class GRPOTrainer(PackedGRPOTrainer):
    """TRL's trainer; its own arguments are passed on as they are.

    `catalog`: completions are SIDs of this catalogue, drawn by `sampler` (a name of ours,
    `module:function` or a function; `sample` by default) in place of `generate`. Its tokens must be
    those of the model. Reward functions get the index of each item as `rollout_item`.

    `signal`: a name or function of ours that turns groups and the summed rewards into advantages
    per token, kept rollouts and repaired groups, in place of TRL's advantages. The data set's
    column `target` holds the index of the target item, or a list of them.

    Raises `RecastError` for what cannot be packed, for settings of TRL that a catalogue leaves
    unread, for parts that TRL's loss has no place for, and when TRL's private methods are not those
    this was written for.
    """

    def __init__(
        self,
        *args: Any,
        catalog: Catalog | None = None,
        sampler: str | Part | None = None,
        signal: str | Part | None = None,
        **kwargs: Any,
    ) -> None:
        for name, part in (("sampler", sampler), ("signal", signal)):
            require(catalog is not None or part is None, name, part, "give a catalog with it")
        super().__init__(*args, **kwargs)
        _require_full(self._causal_lm(self.model).config.name_or_path)
        self._catalog, self._signal = catalog, None
        if catalog is not None:
            self._use_catalog(catalog, "sample" if sampler is None else sampler)
            if signal is not None:
                self._signal = self._usable_signal(catalog, signal)

    def _use_catalog(self, catalog: Catalog, sampler: str | Part) -> None:
        args = self.args
        unread = {
            "temperature": args.temperature == 1.0,
            "top_p": args.top_p == 1.0,
            "top_k": not args.top_k,
            "min_p": not args.min_p,
            "repetition_penalty": args.repetition_penalty == 1.0,
            "generation_kwargs": not args.generation_kwargs,
            "use_vllm": not args.use_vllm,
            "mask_truncated_completions": not args.mask_truncated_completions,
        }
        for name, is_default in unread.items():
            remedy = "rollouts from a catalog do not use it, leave it out"
            require(is_default, name, getattr(args, name), remedy)
        for name in ("rollout_func", "tools"):
            require(not getattr(self, name), name, getattr(self, name), "give it or a catalog")
        size, length = max(self.num_generations, self.num_generations_eval), catalog.max_length
        remedy = "rows do not say which is theirs, give a catalog of one domain"
        require(len(catalog.domains) == 1, "domains of the catalog", catalog.domains, remedy)
        leaves = catalog.trie.num_leaves
        remedy = f"the catalog has {leaves} distinct items, ask for no more"
        require(size <= leaves, "num_generations", size, remedy)
        remedy = f"an item has up to {length} tokens, give at least as many"
        require(
            args.max_completion_length >= length,
            "max_completion_length",
            args.max_completion_length,
            remedy,
        )
        if catalog.form is not None:
            check_writer(self.processing_class, catalog, "processing_class")
        self._policy = as_policy(self._causal_lm(self.model), catalog, 1, "the model")
        part = find_part("sampler", sampler) if isinstance(sampler, str) else sampler
        _require_usable("sampler", part)
        self._sampler = part
        self._eval_batches = itertools.count()
        self.rollout_func = self._roll_out

    def _usable_signal(self, catalog: Catalog, signal: str | Part) -> Part:
        part = find_part("signal", signal) if isinstance(signal, str) else signal
        _require_usable("signal", part, frozenset({"fan_out"}))
        groups = probe_groups(self.num_generations, catalog.num_levels)
        tried = supply(part, probe_resources(groups))(groups, first_hit(groups))
        _require_place(part, groups, tried)
        return supply(part, {"fan_out": partial(fan_out, catalog)})

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's; with a signal its advantages, on the groups as it repaired them."""
        if self._catalog is None:
            plain: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return plain
        self._targets = self._targets_of(inputs)
        # Log-probabilities wait for the signal, which drops rollouts and repairs others.
        self._deferred = self._signal is not None
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._deferred = False
        if self._signal is None:
            return output
        groups, rewards = self._groups, self._rewards
        signal = ask_signal(self._signal, groups, rewards, self.args.output_dir, self._policy)
        _require_place(self._signal, groups, signal)
        mode = "train" if self.model.training else "eval"
        for name, value in group_metrics([(groups, rewards)], signal).items():
            self._metrics[mode][name].append(value)
        return output | self._learned_from(signal, output)

    def _learned_from(self, signal: Signal, output: dict[str, Any]) -> dict[str, Any]:
        """The entries of TRL's batch that a signal decides."""
        tokens = signal.groups.tokens
        mask = (signal.groups.loss_mask & signal.keep[..., None]).flatten(0, 1).long()
        decided = {
            "completion_ids": tokens.flatten(0, 1),
            "completion_mask": mask,
            "advantages": signal.advantages.expand(tokens.shape).flatten(0, 1),
            "num_items_in_batch": self.accelerator.gather(mask.sum()).sum(),
        }
        inputs = (
            torch.cat([output["prompt_ids"], decided["completion_ids"]], dim=1),
            torch.cat([output["prompt_mask"], mask], dim=1),
            mask.shape[1],
            getattr(
                self.args, f"per_device_{'train' if self.model.training else 'eval'}_batch_size"
            ),
        )
        checkpointing = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing):
            for name, model in (("old", self.model), ("ref", self.ref_model)):
                if f"{name}_per_token_logps" in output:
                    found = self._get_per_token_logps_and_entropies(model, *inputs)
                    decided[f"{name}_per_token_logps"] = found[0]
        return decided

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Float[Tensor, "all_N funcs"]:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        found: Tensor = rewards
        if self._signal is not None:
            start = self.accelerator.process_index * len(prompts)
            own = found[start : start + len(prompts)]
            if bool((empty := own.isnan().all(1)).any()):
                row = completion_ids_list[int(empty.nonzero()[0])]
                raise RecastError(
                    f"every reward function gave None for {row}: a signal needs a number for each"
                )
            summed = (own * self.reward_weights.to(own)).nansum(1)
            if not bool((finite := summed.isfinite()).all()):
                row = completion_ids_list[int((~finite).nonzero()[0])]
                raise RecastError(f"the rewards of {row} are not finite: give a number for each")
            self._rewards = summed.view(self._groups.items.shape)
        return found

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: whole groups of rows in, one completion per row out."""
        size = self._group_size
        prompt_ids = self._tokenize_prompts(prompts[::size])[0]
        rows = [torch.tensor(ids, device=self.accelerator.device) for ids in prompt_ids]
        targets, count = self._targets, len(rows)
        first = self.accelerator.process_index * count
        catalog = self._policy.catalog
        batch = make_prompts(
            catalog,
            text=(
                pad_sequence(rows, batch_first=True, padding_value=catalog.pad_token),
                torch.tensor([len(row) for row in rows]),
            ),
            targets=targets,
            row_ids=torch.arange(first, first + count),
        )
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ):
            groups = ask_sampler(
                self._sampler,
                self._policy,
                batch,
                size,
                Draw(seed=self.args.seed, step=self._batch_number()),
                num_rollouts=size,
                folder=self.args.output_dir,
            )
        self._groups: RolloutGroups = groups
        written = zip(groups.tokens.flatten(0, 1), groups.loss_mask.flatten(0, 1), strict=True)
        return {
            "prompt_ids": [ids for ids in prompt_ids for _ in range(size)],
            "completion_ids": [tokens[mask].tolist() for tokens, mask in written],
            "logprobs": None,
            "rollout_item": groups.items.flatten().tolist(),
        }

    def _batch_number(self) -> int:
        """Of its own for every batch of rollouts, also after a run was resumed."""
        if not self.model.training:
            return next(self._eval_batches)
        per_update = self.args.gradient_accumulation_steps
        return int(self.state.global_step * per_update + self._step % per_update)

    @property
    def _group_size(self) -> int:
        size: int = self.num_generations if self.model.training else self.num_generations_eval
        return size

    def _targets_of(self, inputs: list[dict[str, Any]]) -> Int[Tensor, "B T"]:
        """The target items of each group; -1 where there is none."""
        size = self._group_size
        for index, row in enumerate(inputs):
            if len(inputs) % size or row["prompt"] != inputs[index - index % size]["prompt"]:
                raise RecastError(
                    f"a batch of {len(inputs)} rows holds no whole groups of {size}: make the "
                    "batch size of every device a multiple of num_generations"
                )
        if "target" not in inputs[0]:
            require(
                self._signal is None, "target", None, "a signal needs this column of item numbers"
            )
            return torch.full((len(inputs) // size, 1), -1, device=self.accelerator.device)
        last = self._policy.catalog.num_items - 1
        listed = [_items(row["target"], last) for row in inputs[::size]]
        return pad_sequence(listed, batch_first=True, padding_value=-1).to(self.accelerator.device)


def _items(target: Any, last: int) -> Int[Tensor, " T"]:
    """One row's column `target`: an item's index, 0 to `last`, or some of them."""
    try:
        items = torch.as_tensor(target).reshape(-1)
    except (TypeError, ValueError, RuntimeError):  # text, None, lists of unequal length
        items = torch.empty(0)
    if items.is_floating_point() or not bool(((items >= 0) & (items <= last)).all()):
        raise RecastError(
            f"the column target holds {target!r}: give the index of an item of the catalog, 0 to "
            f"{last}, or a list of them"
        )
    return items.long()


def _require_usable(kind: str, part: Part, supplied: frozenset[str] = frozenset()) -> None:
    if traits_of(part).is_over_children:  # TRL's are over the whole vocabulary
        raise RecastError(
            f"{kind} {name_of(part)} is defined over the children that the trie allows, TRL's "
            "log-probabilities are over the whole vocabulary: train with `recast rl`"
        )
    for name in sorted(resources(part) - supplied):
        raise RecastError(
            f"{kind} {name_of(part)} needs {name}: bind it, functools.partial(..., {name}=...)"
        )


def _require_full(folder: str) -> None:
    """Raise `RecastError` for a policy whose probabilities mean nothing over the vocabulary."""
    if is_policy(folder) and (space := read_record(Path(folder))[2]) != "full":
        raise RecastError(
            f"{folder} was trained over {space}, TRL's log-probabilities are over the whole "
            "vocabulary: train with `recast rl`, or start from `recast sft --logprob_space full`"
        )


def _require_place(part: Part, groups: RolloutGroups, signal: Signal) -> None:
    """TRL's batch has a row per completion, its loss a weight per token."""
    given, made = groups.tokens.shape[1], signal.groups.tokens.shape[1]
    if made != given:
        raise RecastError(
            f"signal {name_of(part)} turns groups of {given} rollouts into groups of {made}, for "
            "which TRL's batch has no place: train with `recast rl`"
        )
    if bool((signal.nll_weight != 0).any()):
        raise RecastError(
            f"signal {name_of(part)} weighs the target's likelihood, for which TRL's loss has no "
            "place: train with `recast rl`"
        )
