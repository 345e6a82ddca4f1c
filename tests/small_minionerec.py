"""A folder such as MiniOneRec's data/Amazon (commit 81b4), and a checkpoint that knows its SIDs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import small_chat
import tiny
import torch
from transformers import AutoModelForCausalLM

COLUMNS = [
    *("user_id", "history_item_title", "item_title"),
    *("history_item_id", "item_id", "history_item_sid", "item_sid"),
]


def names(codes: Sequence[int]) -> list[str]:
    """<a_60>, <b_159>, ..."""
    return [f"<{level}_{code}>" for level, code in zip("abcdef", codes, strict=False)]


def write_folder(
    folder: Path,
    name: str,
    titles: Sequence[str],
    sids: Sequence[Sequence[int]],
    rows: Mapping[str, Sequence[tuple[str, list[int], int]]],
) -> None:
    """The data set `name` (rows by split: user, history, item) beside those that are there."""
    words = ["".join(names(codes)) for codes in sids]
    for part in (*rows, "info", "index"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        with (folder / split / f"{name}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(COLUMNS)
            for user, past, item in lines:
                cells = [user, [titles[i] for i in past], titles[item], past, item]
                table.writerow([*cells, [words[i] for i in past], words[item]])
    short = name.partition("_")[0]
    lines = [f"{words[i]}\t{title}\t{i}\n" for i, title in enumerate(titles)]
    (folder / "info" / f"{name}.txt").write_text("".join(lines))
    index = {str(i): names(codes) for i, codes in enumerate(sids)}
    (folder / "index" / f"{short}.index.json").write_text(json.dumps(index))
    texts = {str(i): {"title": title, "description": ""} for i, title in enumerate(titles)}
    (folder / "index" / f"{short}.item.json").write_text(json.dumps(texts))


def save_checkpoint(folder: Path, sids: Sequence[Sequence[int]]) -> None:
    """`small_chat.save_model` with the names of these SIDs, added as MiniOneRec's sft.py adds them:
    those that an item has, sorted as text."""
    tokenizer = small_chat.chat_tokenizer()
    tokenizer.add_tokens(sorted({name for codes in sids for name in names(codes)}))
    config = tiny.tiny_config("qwen3", len(tokenizer))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 302, 300
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
