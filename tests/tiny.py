"""Tiny catalogues, models and prompts that the tests of the core share."""

from __future__ import annotations

import copy

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from recast.items.catalog import Catalog, build_catalog, build_token_catalog
from recast.policy.encoder_decoder import auto_class
from recast.policy.load import Policy
from recast.policy.prompts import make_prompts as make_prompts_of
from recast.policy.tasks import HistoryTask
from recast.types import Interactions, Prompts, RolloutGroups

CODES = torch.tensor(
    [[0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 2, 2], [1, 2, 0], [2, 0, 1], [2, 1, 1], [2, 1, 3]]
)
SIZES = (3, 3, 4)
DECODERS = ("qwen3", "llama", "gpt2", "mistral", "gemma3")
ARCHITECTURES = (*DECODERS, "t5")


def tiny_catalog() -> Catalog:
    """Eight items on three levels."""
    return build_catalog(CODES, SIZES)


TEXTS = [[3, 4, 5, 2], [3, 4, 6, 2], [3, 4, 6, 5, 2], [5, 2], [6, 3, 3, 3, 2], [6, 3, 4, 2], [7, 2]]


def text_catalog(texts: list[list[int]] | None = None) -> Catalog:
    """Items of 2 to 5 tokens, which all end in 2; 0 pads, 1 begins.

    The first three share 3 4, of which 4 is forced; the second and third share 6 too. So they have
    2, 3 and 3 decisions, the 5 and the 7 have 1, the others 2.
    """
    rows = TEXTS if texts is None else texts
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for item, row in enumerate(rows):
        tokens[item, : len(row)] = torch.tensor(row)
    return build_token_catalog(tokens, lengths)


def random_texts(num_items: int, seed: int = 0) -> Catalog:
    """Distinct texts of 2 to 6 tokens out of 3 to 7 that end in 2."""
    draw, texts = torch.Generator().manual_seed(seed), set[tuple[int, ...]]()
    while len(texts) < num_items:
        body = torch.randint(3, 8, (int(torch.randint(1, 6, (), generator=draw)),), generator=draw)
        texts.add((*body.tolist(), 2))
    return text_catalog([list(text) for text in sorted(texts)])


def random_catalog(num_items: int, sizes: tuple[int, ...], seed: int = 0) -> Catalog:
    """At most `num_items` items with distinct random codes."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, n, (num_items,), generator=draw) for n in sizes], dim=1)
    return build_catalog(torch.unique(codes, dim=0), sizes)


def tiny_config(name: str, vocab_size: int) -> PretrainedConfig:
    """A small model with random weights large enough that attention is far from uniform.

    Dropout rates are not zero, so that a test notices when they are left on.
    """
    common = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 640,
        "initializer_range": 0.15,
        "attention_dropout": 0.1,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    if name.startswith("qwen"):
        common |= {"tie_word_embeddings": True}
        return Qwen2Config(**common) if name == "qwen2" else Qwen3Config(**common, head_dim=8)
    if name == "llama":
        return LlamaConfig(**common, tie_word_embeddings=False)
    if name == "mistral":
        return MistralConfig(**common, head_dim=8, sliding_window=4)
    if name == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return Gemma3TextConfig(
            **common, head_dim=8, sliding_window=5, layer_types=layers, query_pre_attn_scalar=8
        )
    special = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": None}
    if name == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 640}
        return GPT2Config(vocab_size=vocab_size, **shape, **special, initializer_range=0.15)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    shape |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    special |= {"decoder_start_token_id": 0}
    return T5Config(vocab_size=vocab_size, **shape, **special, initializer_factor=1.2)


def tiny_policy(name: str, catalog: Catalog, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy in evaluation mode; the same weights on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = tiny_config(name, catalog.vocab_size)
        make, attention = auto_class(config)
        model = make.from_config(config, attn_implementation=attention)
    return Policy(model=model.to(dtype).eval(), catalog=catalog, window=20)


def tiny_tokenizer(size: int, **settings: object) -> PreTrainedTokenizerFast:
    """Words between spaces, in any case: <unk> is 0, <s> 1, </s> 2, w3 3, ..., up to `size`."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, size)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **settings)


def twin(model: PreTrainedModel, attention: str = "sdpa") -> PreTrainedModel:
    """The same weights in transformers' own attention."""
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):
        other = auto_class(config)[0].from_config(config, attn_implementation=attention)
    other.to(model.dtype).load_state_dict(model.state_dict())
    assert other.config._attn_implementation == attention
    return other.eval()


def task_of(events: Interactions, policy: Policy) -> HistoryTask:
    """The events as prompts of the policy."""
    return HistoryTask(interactions=events, catalog=policy.catalog, window=policy.window)


def make_prompts(
    catalog: Catalog,
    histories: list[list[int]],
    targets: list[list[int]],
    seen: list[list[int]] | None = None,
    first_row: int = 0,
) -> Prompts:
    """Prompts from item lists; ragged lists are padded with -1 on the right."""
    return make_prompts_of(
        catalog,
        history=_padded(histories),
        targets=_padded(targets),
        seen=None if seen is None else _padded(seen),
        row_ids=torch.arange(len(histories)) + first_row,
    )


def with_targets(catalog: Catalog, prompts: Prompts, targets: Tensor) -> Prompts:
    """The prompts with these target items, -1 as padding."""
    return make_prompts_of(
        catalog,
        history=prompts.history,
        text=(prompts.tokens, prompts.lengths),
        targets=targets,
        seen=prompts.seen,
        row_ids=prompts.row_ids,
    )


def groups_of_items(catalog: Catalog, prompts: Prompts, items: Tensor) -> RolloutGroups:
    """Rollouts of these items, -1 for one that does not exist; all log-probabilities are 0."""
    tokens = catalog.tokens_of(items)
    return RolloutGroups(
        prompts=prompts,
        tokens=tokens,
        items=items,
        predictions=catalog.sids_of(tokens).masked_fill((items < 0)[..., None], -1)[:, :, None],
        rollout_logprobs=torch.zeros(tokens.shape),
        target_logprobs=torch.zeros(prompts.targets.shape),
        loss_mask=catalog.mask_of(items),
        seed=0,
        step=0,
    )


def make_groups(
    tokens: list[list[list[int]]],
    targets: list[list[list[int]]],
    target_items: list[list[int]] | None = None,
    items: list[list[int]] | None = None,
    exists: list[list[bool]] | None = None,
    seed: int = 0,
) -> RolloutGroups:
    """Groups by hand; log-probabilities are numbers that a test can recognise."""
    rollouts, wanted = torch.tensor(tokens), torch.tensor(targets)
    num_prompts, group_size = rollouts.shape[:2]
    mask = torch.ones_like(rollouts, dtype=torch.bool)
    if exists is not None:
        mask &= torch.tensor(exists)[..., None]
    ids = torch.arange(wanted.shape[1]).expand(num_prompts, -1) + 100
    known = ids.clone() if target_items is None else torch.tensor(target_items)
    return RolloutGroups(
        prompts=Prompts(
            tokens=torch.ones(num_prompts, 1, dtype=torch.long),
            lengths=torch.ones(num_prompts, dtype=torch.long),
            targets=wanted,
            target_items=known,
            target_mask=(known >= 0)[..., None].expand(wanted.shape),
            target_sids=wanted.masked_fill((known < 0)[..., None], -1),
            history=torch.empty(num_prompts, 0, dtype=torch.long),
            seen=torch.empty(num_prompts, 0, dtype=torch.long),
            row_ids=torch.arange(num_prompts),
            domains=torch.zeros(num_prompts, dtype=torch.long),
        ),
        tokens=rollouts,
        items=torch.arange(num_prompts * group_size).view(num_prompts, group_size)
        if items is None
        else torch.tensor(items),
        predictions=rollouts.masked_fill(~mask, -1)[:, :, None],
        rollout_logprobs=-1.0 - torch.arange(rollouts.numel()).view(rollouts.shape) / 100,
        target_logprobs=-5.0 - torch.arange(wanted.numel()).view(wanted.shape) / 100,
        loss_mask=mask,
        seed=seed,
        step=0,
    )


def _padded(rows: list[list[int]]) -> Tensor:
    width = max(len(row) for row in rows)
    flat = [row + [-1] * (width - len(row)) for row in rows]
    return torch.tensor(flat, dtype=torch.long).view(len(rows), width)
