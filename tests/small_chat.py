"""A tiny tokenizer with a ChatML template, models of several kinds around it, and rows of text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recast.config import PromptConfig
from recast.items.catalog import Catalog, build_catalog
from recast.items.names import SidNames
from recast.policy.attention import ATTENTION
from recast.policy.load import Policy

NAMES = SidNames(pattern="<s_{level}_{code}>", begin="<|sid_begin|>", end="<|sid_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Bytes and pairs of them, <think> and </think> up to 299, then <|endoftext|> 300,
    <|im_start|> 301, <|im_end|> 302."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(
        ["the user watched these items in turn, what comes next?"] * 3, trainer
    )
    count = 300 - made.get_vocab_size()
    words = ["<think>", "</think>", *(f"<|filler_{i}|>" for i in range(count))][:count]
    made.add_tokens([AddedToken(word) for word in words])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.add_special_tokens([AddedToken(word, special=True) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def chat_catalog(**settings: Any) -> Catalog:
    """`tiny.CODES` behind 303 tokens of text: from 303 on, <|sid_begin|> 313, <|sid_end|> 314."""
    texts = [f"Item {number}" for number in range(len(tiny.CODES))]
    return build_catalog(
        tiny.CODES,
        tiny.SIZES,
        **{"names": NAMES, "texts": texts, "first_token": 303, "pad_token": 300} | settings,
        bos_token=301,
    )


def chat_policy(name: str = "qwen3", prompt: PromptConfig | None = None, **settings: Any) -> Policy:
    """A policy of `tiny_config` that renders its prompts."""
    catalog = chat_catalog(**settings)
    policy = tiny.tiny_policy(name, catalog)
    tokenizer = chat_tokenizer()
    names = catalog.names.of(catalog.codebook_sizes)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in names])
    return replace(policy, tokenizer=tokenizer, prompt=prompt or PromptConfig(history="sids"))


def save_model(folder: Path, template: str | None = CHATML) -> None:
    """A Qwen3 of 303 tokens with its tokenizer, as a team would start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny.tiny_config("qwen3", 303)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 302, 300
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    model.save_pretrained(folder)
    chat_tokenizer(template).save_pretrained(folder)


def messages(*said: str, system: str | None = None) -> str:
    """JSON of a system message, if any, and user and assistant in turn."""
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return json.dumps(([{"role": "system", "content": system}] if system else []) + roles)
