from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from recast.types import SPLITS, Interactions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "green", "old", "new", "##er"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 8 dimensions with random weights, at most 6 tokens long."""
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=6,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(folder)
    words = Tokenizer(WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def make_interactions() -> Callable[..., Interactions]:
    def build(
        users: list[int], items: list[int], splits: list[str], num_items: int
    ) -> Interactions:
        user = torch.tensor(users)
        return Interactions(
            users=user,
            items=torch.tensor(items),
            times=torch.arange(len(items)),
            starts=torch.searchsorted(user, user),
            splits=torch.tensor([SPLITS.index(split) for split in splits]),
            num_users=int(user.max()) + 1,
            num_items=num_items,
            exclude_seen=False,
            split_name="by hand",
        )

    return build
