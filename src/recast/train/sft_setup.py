"""What `recast sft` stands on: a config in; data, policy and threads out, nothing trained."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recast.config import ModelConfig, NewRows, SFTConfig
from recast.config.train import MOST_FULL
from recast.data.plain_text import read_plain_text
from recast.data.rows import Rows
from recast.evaluation.text import TextProbe, make_probe
from recast.evaluation.validation import require_valid
from recast.items.catalog import Catalog, load_catalog
from recast.items.embed import has_vectors, load_vectors
from recast.policy.body import dropping
from recast.policy.chat import ChatTask, with_room
from recast.policy.create import create_policy
from recast.policy.device import find_device
from recast.policy.encoder_decoder import is_encoder_decoder
from recast.policy.extend import choose_new_rows
from recast.policy.load import Policy
from recast.policy.memory import plan_memory
from recast.policy.passes import MOST_MEASURED, MOST_PASS_TOKENS, measure_pass_tokens
from recast.policy.save import rounding
from recast.policy.sharded import shard
from recast.policy.tasks import HistoryTask, Task, check_catalog, load_source, make_task
from recast.policy.threads import choose_threads
from recast.policy.tokenizer import load_tokenizer
from recast.run.fingerprint import meet
from recast.train.epochs import Epochs, make_epochs
from recast.train.keeper import RunFacts
from recast.train.premises import check_training
from recast.train.rates import Rates, rates_of
from recast.train.result import require_room
from recast.train.resumed import find_checkpoint
from recast.train.sequences import draw_negatives, learn
from recast.train.sft_premises import (
    check_catalog_of,
    check_negatives,
    check_pairs,
    reads_text,
)
from recast.train.sft_rows import has_parts
from recast.types import Interactions, LogprobSpace, RecastError


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTSetup:
    """What `train_sft` stands on."""

    policy: Policy
    task: Task
    epochs: Epochs
    """What it reads."""
    probe: TextProbe | None
    """Tells what the policy can still say."""
    num_windows: int
    """Of the first epoch, or rows of the data."""
    longest: int
    """Tokens of the longest of them."""
    epoch_steps: int
    """Of the first epoch."""
    num_steps: int
    """At which the schedule of the rates ends."""
    rates: Rates
    valid_rows: Int[Tensor, " N"]
    text: str
    """Where the policy comes from, for the screen."""
    pass_tokens: int
    micro_batch_tokens: int
    run: RunFacts


def set_up_sft(config: SFTConfig) -> SFTSetup:
    """Load and check everything, make the policy.

    Raises `RecastError` for whatever does not fit together, before there is a folder.
    """
    meet(config, SFTConfig)
    resumed = find_checkpoint(config.output, config.resume)
    config = replace(config, **(resumed.measured(config) if resumed else {}))
    find_device(config.device)
    catalog = load_catalog(config.catalog)
    check_catalog(config.data, catalog)
    check_catalog_of(config, catalog)
    vectors = _vectors(config, catalog)
    plain = read_plain_text(config.plain_text) if config.plain_text else None
    policy, task, source = _made(config, catalog, vectors)
    check_negatives(config.negatives, policy)
    policy.model.float()  # a small step is lost on weights of 8 bits
    chosen = config.resolved
    copies = 4 + (chosen.ema > 0)
    require_room(config.output, policy, copies=copies, checkpoints=1 if resumed else 2)
    rates = rates_of(policy, chosen.lr, config.sid_lr)
    rates.freeze(policy.model)
    with dropping(policy.model, chosen.layer_dropout):
        pass  # a model whose blocks are not found says so now
    torch.manual_seed(config.seed)  # dropout is the only draw that is not counter-based
    epochs = make_epochs(
        policy,
        task,
        source,
        plain=plain,
        splits=config.splits,
        weights=config.task_weights,
        loss_on=config.loss_on,
        epochs=max(config.epochs, 1),  # without any it is refused or said what one would read
        seed=config.seed,
    )
    rows, sequences = epochs.rows, epochs.sequences(0)
    if not len(sequences):
        raise RecastError(f"{config.data} has no {_lacking(task)}: give more data")
    check_training(policy, task, rows, sequences)
    longest = max(int(sequences.lengths.max()), epochs.longest)
    most = min(config.batch_windows, len(sequences))
    learned = int(sequences.loss_mask.sum()) * most // len(sequences)
    plan = plan_memory(
        policy,
        longest,
        config.micro_batch_tokens,
        reads=learned,
        has_lora=False,
        fsdp_size=config.fsdp_size,
    )
    if plan.checkpointing:
        policy.model.activation_checkpointing_enable()
    if isinstance(task, ChatTask):
        most = max(1, min(most, MOST_MEASURED // longest))
    few = torch.arange(most, device=policy.catalog.device)

    def work(rows: int = len(few)) -> int:
        learned = learn(
            policy,
            *sequences.batch(few[:rows]),
            dropout=0.0,
            precision=config.precision,
            pass_tokens=MOST_PASS_TOKENS,
            micro_batch_tokens=plan.micro_batch_tokens,
            negatives=draw_negatives(policy.catalog, config.negatives, config.seed, 0),
        )
        policy.model.zero_grad(set_to_none=True)
        return learned.sent_tokens

    threads = choose_threads(work, config.threads, config.device)
    pass_tokens = config.pass_tokens or MOST_PASS_TOKENS
    if config.pass_tokens is None and has_parts(policy, longest):
        pass_tokens = measure_pass_tokens(work, len(few), config.device)
    shard(policy.model, config.fsdp_size)
    rates = rates_of(policy, chosen.lr, config.sid_lr)
    new_rows = _new_rows(config.model, catalog, has_vectors=vectors is not None)
    settings = asdict(replace(config, model=replace(config.model, new_rows=new_rows)))
    settings |= chosen._asdict() | {
        "logprob_space": policy.logprob_space,
        "prompt": asdict(policy.prompt),
        "micro_batch_tokens": plan.micro_batch_tokens,
    }
    epoch_steps = math.ceil(len(sequences) / config.batch_windows)
    valid_rows = require_valid(task, config.data, config.valid_rows)
    notes = [*task.notes(torch.cat([rows, valid_rows])), *epochs.notes]
    return SFTSetup(
        policy=policy,
        task=task,
        epochs=epochs,
        probe=make_probe(policy, plain) if plain else None,
        num_windows=len(sequences) - sum(epochs.counts.values()),
        epoch_steps=epoch_steps,
        num_steps=min(config.epochs * epoch_steps, config.max_steps or sys.maxsize),
        rates=rates,
        longest=longest,
        valid_rows=valid_rows,
        text="\n".join(filter(None, [_said(policy, config.model.path, new_rows), *notes])),
        pass_tokens=pass_tokens,
        micro_batch_tokens=plan.micro_batch_tokens,
        run=RunFacts(
            output=config.output,
            settings=settings | {"threads": threads, "pass_tokens": pass_tokens},
            resumed=resumed,
        ),
    )


def _made(
    config: SFTConfig, catalog: Catalog, vectors: Float[Tensor, "I D"] | None
) -> tuple[Policy, Task, Rows | Interactions]:
    """The policy to train, what it reads and where that is from."""
    source = load_source(config.data)
    num_targets = int(source.targets.lengths.max()) if isinstance(source, Rows) else None
    policy = create_policy(
        config.model,
        catalog,
        config.window,
        config.seed,
        vectors,
        prompt=config.prompt,
        num_targets=num_targets,
    )
    policy = with_room(policy.to(config.device), num_targets or 1)
    task = make_task(
        source,
        policy,
        backwards_frac=config.backwards_frac,
        crop_frac=config.crop_frac,
        seed=config.seed,
    )
    if is_encoder_decoder(policy.model):
        check_pairs(config)
    space = "full" if reads_text(config, task) else _space_of(policy)
    return replace(policy, logprob_space=config.logprob_space or space), task, source


def _lacking(task: Task) -> str:
    is_events = isinstance(task, HistoryTask)
    return "user with 2 training events" if is_events else "row to train on"


def _space_of(policy: Policy) -> LogprobSpace:
    """Where the config leaves it open: the space that the policy was trained in, and `trie` where
    the last of several tokens is the item itself, as `recast tokenize --items_as item` has it, and
    the vocabulary is larger than that of shared codes."""
    catalog = policy.catalog
    is_short = catalog.num_items <= MOST_FULL or len(catalog.domains) > 1
    if policy.logprob_space != "full" or len(catalog.codebook_sizes) < 2 or is_short:
        return policy.logprob_space
    items = torch.arange(catalog.num_items, device=catalog.device)
    return "trie" if torch.equal(catalog.codes[:, -1].long(), items) else "full"


def _vectors(config: SFTConfig, catalog: Catalog) -> Float[Tensor, "I D"] | None:
    """What the rows of a new model begin as, if they are to begin as vectors."""
    asked, is_new = config.model.new_rows, config.model.path is None
    if not (is_new and catalog.codebook_sizes) or asked == "spread":
        return None
    if asked is None and not has_vectors(config.catalog):
        return None
    return load_vectors(config.catalog, catalog)


def _new_rows(config: ModelConfig, catalog: Catalog, *, has_vectors: bool) -> NewRows | None:
    """How they begin, by the tokenizer as it was before the names were added."""
    tokenizer = None if config.path is None else load_tokenizer(Path(config.path))
    return choose_new_rows(config, catalog, tokenizer, has_vectors=has_vectors)


def _said(policy: Policy, path: str | None, new_rows: NewRows | None) -> str:
    """Where a policy comes from, one fact a line."""
    lines = []
    if new_rows is not None or (path is not None and policy.catalog.codebook_sizes):
        first, last = policy.catalog.first_token, policy.catalog.vocab_size - 1
        name = path or "a new model"
        how = "which it knows" if new_rows is None else f"new_rows: {new_rows}"
        lines.append(f"{name}: tokens {first} to {last} are semantic IDs, {how}")
    return "\n".join([*lines, *rounding(policy.model)])
