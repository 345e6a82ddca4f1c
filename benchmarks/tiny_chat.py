"""A tiny chat model of random weights: texts in, the folder of a Qwen3 with a tokenizer out.

    python -m benchmarks.tiny_chat --output FOLDER --texts RECIF_FOLDER

Stands in for Qwen3-0.6B and its like where nothing can be downloaded: a byte-level BPE learned from
the texts, ChatML with an optional system message, `<think>` tags as plain tokens and a stop token
`<|im_end|>`, as Qwen3 has them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

from recast.errors import RecastError
from recast.run.files import staged_folder

END, PAD, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SID = re.compile(r"<\|sid_begin\|>.*?<\|sid_end\|>")


def chat_tokenizer(texts: Iterable[str], vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A BPE of these texts without the SIDs in them, whose names are no words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((SID.sub("", text) for text in texts), trainer)
    tokenizer.add_special_tokens([PAD, START, END])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHATML
    )


def chat_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 64, layers: int = 2
) -> PreTrainedModel:
    """A Qwen3 of two heads for every 64 of the hidden width; seeded."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=max(hidden // 64, 1),
        head_dim=32,
        max_position_embeddings=2**14,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def texts_of(folder: Path) -> list[str]:
    """Contents of all messages and captions in the Parquet files of a folder."""
    texts = []
    for file in sorted(folder.glob("*.parquet")):
        frame = pl.read_parquet(file)
        for messages in frame["messages"].to_list() if "messages" in frame.columns else []:
            texts += [part["text"] for turn in json.loads(messages) for part in turn["content"]]
        texts += frame["dense_caption"].to_list() if "dense_caption" in frame.columns else []
    return texts


def main(given: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_chat")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--texts", type=Path, required=True, help="a folder of benchmarks.recif")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args(given)
    if not (texts := texts_of(arguments.texts)):
        parser.error(f"texts is {arguments.texts}: no Parquet file there has messages or captions")
    tokenizer = chat_tokenizer(texts)
    model = chat_model(tokenizer, arguments.hidden, arguments.layers)
    try:
        with staged_folder(arguments.output) as stage:
            tokenizer.save_pretrained(stage)
            model.save_pretrained(stage)
    except RecastError as error:
        sys.exit(f"benchmarks.tiny_chat: {error}")
    print(f"Qwen3 of {model.num_parameters():,} weights, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
