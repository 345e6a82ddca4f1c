"""TRL trainers on a tiny model whose tokens are those of a tiny catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import random_catalog, tiny_policy, twin
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl import GRPOConfig

from recast.items.catalog import Catalog
from recast.policy.load import disable_dropout

CATALOG = random_catalog(40, (5, 5, 5))
GROUP, PROMPTS = 4, 3


def tokenizer(catalog: Catalog) -> PreTrainedTokenizerFast:
    """Token i of the model is the word `<i>`; 0 pads and 1 ends."""
    words = {f"<{token}>": token for token in range(catalog.vocab_size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<0>", eos_token="<1>", padding_side="left"
    )


def rows() -> Dataset:
    """Prompts of unequal length, targets of which the last row has two."""
    histories = [torch.tensor(items) for items in ([3, 17, 20, 9], [8], [30, 31])]
    texts = [
        " ".join(f"<{token}>" for token in [1, *CATALOG.tokens_of(history).flatten().tolist()])
        for history in histories
    ]
    return Dataset.from_dict({"prompt": texts, "target": [[11], [25], [6, 7]]})


def make_trainer(
    kind: Any,
    folder: Path,
    settings: dict[str, Any],
    model: PreTrainedModel | None = None,
    **given: Any,
) -> Any:
    """A trainer of class `kind`; every call starts from the same weights."""
    model = twin(tiny_policy("qwen3", CATALOG).model) if model is None else model
    disable_dropout(model)
    model.save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")  # TRL reloads its reference from here
    defaults: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "num_generations": GROUP,
        "per_device_train_batch_size": GROUP * PROMPTS,
        "max_completion_length": 4,
        "beta": 0.1,
        "learning_rate": 1e-2,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 3,
    }
    given.setdefault("reward_funcs", lambda completion_ids, **columns: [0.0] * len(completion_ids))
    return kind(
        model=model,
        args=GRPOConfig(**defaults | settings),
        train_dataset=rows(),
        processing_class=tokenizer(CATALOG),
        **given,
    )
