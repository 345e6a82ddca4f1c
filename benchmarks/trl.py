"""A whole RL step: TRL's GRPOTrainer, stock and with both known overrides, against Recast's.

Both sides train the same model object against the same reference, in turns: Recast makes its step
where TRL has just ended one. A step of TRL is all that lies between two ends of steps: data,
tokenization, generation, rewards, reference, update, log. A step of Recast builds its prompts from
the events, rolls out, rewards, takes GRPO's signal and updates, reference and KL over all rollouts
included. Both write three tokens per completion, clip the gradient and use AdamW.
"""

from __future__ import annotations

import gc
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging
from trl import GRPOConfig
from trl import GRPOTrainer as StockTrainer

from benchmarks.harness import Row, actor_of, main, random_catalog, tiny_qwen3
from benchmarks.trl_overrides import OverriddenTrainer, check
from recast.integrations.trl import GRPOTrainer
from recast.items.catalog import Catalog
from recast.methods.parts import find_part
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy
from recast.policy.tasks import HistoryTask
from recast.rewards.hit import first_hit
from recast.signals.grpo import grpo
from recast.train.actor import Actor, update
from recast.types import SPLITS, Draw, Interactions

UNREAD = "the last layer's attention over the prompt, which nobody reads"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison of steps."""

    num_prompts: int
    group_size: int
    items: int
    """Items of a history; a prompt is these and a BOS."""
    steps: int
    """Steps timed, after one that is not."""
    micro_batch: int
    """Rows per forward pass of TRL's update."""
    side: Literal["stock", "overrides", "adapter"] = "stock"
    checkpointing: bool = False

    @property
    def rows(self) -> int:
        return self.num_prompts * self.group_size


def users(catalog: Catalog, case: Case) -> Interactions:
    """One user per prompt with a random history; the last event is the target."""
    draw = torch.Generator().manual_seed(0)
    count, length = case.num_prompts * (case.steps + 1), case.items + 1
    user = torch.arange(count).repeat_interleave(length)
    return Interactions(
        users=user,
        items=torch.randint(catalog.num_items, (count * length,), generator=draw),
        times=torch.arange(count * length),
        starts=user * length,
        splits=torch.full((count * length,), SPLITS.index("rl")),
        num_users=count,
        num_items=catalog.num_items,
        exclude_seen=False,
        split_name="made up",
    )


def last_rows(events: Interactions) -> torch.Tensor:
    """The target row of every user."""
    return torch.arange(events.num_users) * (len(events.items) // events.num_users) + (
        len(events.items) // events.num_users - 1
    )


def word_tokenizer(catalog: Catalog) -> PreTrainedTokenizerFast:
    """Token i of the model is the word `<i>`."""
    words = {f"<{token}>": token for token in range(catalog.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<0>", eos_token="<1>", padding_side="left"
    )


def hit_of(catalog: Catalog) -> Any:
    """TRL's reward function: 1 where the completion is the target."""

    def hit(completion_ids: list[list[int]], target: list[int], **columns: object) -> list[float]:
        wanted = catalog.tokens_of(torch.tensor(target)).tolist()
        return [float(ids == path) for ids, path in zip(completion_ids, wanted, strict=True)]

    return hit


class RecastSteps(TrainerCallback):
    """At the end of every step of TRL: note its time, then make and time a step of Recast."""

    def __init__(self, catalog: Catalog, case: Case, events: Interactions, sampler: str) -> None:
        self.catalog, self.case, self.events = catalog, case, events
        self.sampler = find_part("sampler", sampler)
        self.actor: Actor | None = None
        self.theirs: list[float] = []
        self.ours: list[float] = []
        self.since = 0.0

    def attach(self, model: PreTrainedModel, reference: PreTrainedModel) -> None:
        """The models that TRL trains."""
        policy = Policy(model=model, catalog=self.catalog, window=self.case.items + 1)
        self.reference = reference
        self.actor = actor_of(
            policy,
            replace(policy, model=reference),
            torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0),
        )

    def step(self, index: int) -> None:
        """A whole step of Recast."""
        assert self.actor is not None
        size = self.case.num_prompts
        rows = last_rows(self.events)[index * size : (index + 1) * size]
        policy = self.actor.policy
        prompts = task_of(self.events, self.catalog, policy.window).prompts(rows)
        groups = self.sampler(policy, prompts, self.case.group_size, Draw(step=index))
        update(self.actor, grpo(groups, first_hit(groups)))

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.theirs.append(time.process_time() - self.since)
        if self.case.checkpointing:  # TRL alone is timed: the model it checkpoints is not ours
            self.since = time.process_time()
            return
        assert self.actor is not None
        both = [self.actor.policy.model, self.reference]
        before = [model.config._attn_implementation for model in both]
        for model in both:
            model.set_attn_implementation(ATTENTION)
        gc.collect()
        start = time.process_time()
        self.step(state.global_step - 1)
        self.ours.append(time.process_time() - start)
        for model, name in zip(both, before, strict=True):
            model.set_attn_implementation(name)
        gc.collect()
        self.since = time.process_time()


def task_of(events: Interactions, catalog: Catalog, window: int) -> HistoryTask:
    return HistoryTask(interactions=events, catalog=catalog, window=window)


def trainer_of(
    catalog: Catalog, case: Case, events: Interactions, steps: RecastSteps, folder: Path
) -> Any:
    """TRL's trainer on the same events, stock, with both overrides by hand, or our adapter."""
    model = tiny_qwen3(catalog.vocab_size)
    model.save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")  # TRL reloads its reference from here
    rows = last_rows(events)
    prompts = task_of(events, catalog, case.items + 1).prompts(rows)
    tokenizer = word_tokenizer(catalog)
    texts = [" ".join(f"<{token}>" for token in row) for row in prompts.tokens.tolist()]
    assert tokenizer(texts)["input_ids"] == prompts.tokens.tolist()
    data = Dataset.from_dict({"prompt": texts, "target": events.items[rows].tolist()})
    args = GRPOConfig(
        output_dir=str(folder / "run"),
        num_generations=case.group_size,
        per_device_train_batch_size=case.micro_batch,
        gradient_accumulation_steps=case.rows // case.micro_batch,
        max_completion_length=catalog.num_levels,
        max_steps=case.steps + 1,
        beta=0.001,
        activation_checkpointing=case.checkpointing,
        shuffle_dataset=False,
        learning_rate=1e-6,
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    sides: dict[str, tuple[Any, dict[str, Any]]] = {
        "stock": (StockTrainer, {}),
        "overrides": (OverriddenTrainer, {"catalog": catalog}),
        "adapter": (GRPOTrainer, {"catalog": catalog, "sampler": "beam"}),
    }
    kind, given = sides[case.side]
    trainer: Any = kind(
        model=model,
        reward_funcs=hit_of(catalog),
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[steps],
        **given,
    )
    trainer.remove_callback(PrinterCallback)
    steps.attach(trainer.model, trainer.ref_model)
    return trainer


def compare(catalog: Catalog, case: Case, sampler: str) -> RecastSteps:
    """The CPU seconds of steps of TRL and of Recast, the first of each left out."""
    events = users(catalog, case)
    steps = RecastSteps(catalog, case, events, sampler)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's own, of transformers
        warnings.filterwarnings("ignore", message="You are using .rollout_func.")
        trainer = trainer_of(catalog, case, events, steps, Path(folder))
        trainer.train()
        if case.side == "overrides":
            check(trainer, num_prompts=2)
    del steps.theirs[0], steps.ours[:1]
    return steps


def run(smoke: bool) -> list[Row]:
    """Stock at two prompt lengths, then with both overrides."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    catalog = random_catalog(60, 8) if smoke else random_catalog(100_000, 256)
    if smoke:
        case = Case(num_prompts=2, group_size=4, items=5, steps=1, micro_batch=4)
        cases = {"256": case, "1024": case}
        overrides = Case(
            num_prompts=2, group_size=4, items=5, steps=1, micro_batch=8, side="overrides"
        )
    else:
        cases = {
            "256": Case(num_prompts=8, group_size=32, items=85, steps=3, micro_batch=32),
            "1024": Case(num_prompts=4, group_size=32, items=341, steps=3, micro_batch=32),
        }
        overrides = Case(
            num_prompts=8, group_size=32, items=85, steps=15, micro_batch=256, side="overrides"
        )
    rows = []
    for (length, case), bar in zip(cases.items(), (30, 35), strict=True):
        steps = compare(catalog, case, "sample")
        theirs, ours = median(steps.theirs), median(steps.ours)
        default = replace(case, steps=1, checkpointing=True)
        [checkpointed] = compare(catalog, default, "sample").theirs
        rows.append(
            Row(
                name=f"step_trl_{length}",
                what=f"whole RL step, P {case.num_prompts}, G {case.group_size}, "
                f"prompt {1 + 3 * case.items}, reference on",
                against="TRL 1.16 GRPOTrainer, stock, its checkpointing turned off; Recast does "
                f"not compute {UNREAD}",
                value=theirs / ours,
                bar=bar,
                at_least=True,
                details=f"TRL {theirs:.2f} s, Recast (constrained samples) {ours:.3f} s, "
                f"{case.steps} steps; with checkpointing, TRL's default, {checkpointed:.2f} s: "
                f"{checkpointed / ours:.1f}x",
            )
        )
    steps = compare(catalog, overrides, "beam")
    theirs, ours = median(steps.theirs), median(steps.ours)
    other = compare(catalog, replace(overrides, side="adapter"), "beam")
    adapter = median(other.theirs), median(other.ours)
    rows.append(
        Row(
            name="step_trl_overrides_256",
            what=f"whole RL step, P {overrides.num_prompts}, G {overrides.group_size}, "
            f"prompt {1 + 3 * overrides.items}, reference on",
            against="TRL 1.16 with both overrides by hand (trie beams as rollout_func, packed "
            f"log-probabilities), one micro batch, checkpointing off; neither computes {UNREAD}",
            value=theirs / ours,
            bar=1.0,
            at_least=True,
            details=f"TRL {theirs:.3f} s, Recast (the same beams) {ours:.3f} s, "
            f"{overrides.steps} steps; our adapter for TRL {adapter[0]:.3f} s beside Recast "
            f"{adapter[1]:.3f} s: {adapter[0] / adapter[1]:.2f}x",
        )
    )
    return rows


if __name__ == "__main__":
    main(run)
