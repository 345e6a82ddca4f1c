"""Readers of what a folder may hold: whatever stands there, the right value or one line.

`CORPUS` keeps what once went wrong, and one of each kind that could.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from recast.items.catalog import load_catalog
from recast.items.embed import load_embeddings
from recast.items.encoder import embed_texts
from recast.items.pooling import read_pooling
from recast.types import RecastError

BRIEF = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD = (None, True, -1, 0, 3, 2**31, 10**30, 1e300, float("nan"), "", "x", "\0", [], [[]], {}, [-1])
VALUES = st.sampled_from(ODD) | st.lists(st.sampled_from(ODD), max_size=3)
CORPUS = [b"", b"\xff\xfe", b"null", b"[" * 9999, b'{"a":' * 9999, b"PAR1" * 4, b"1e999", b"{}"]

Edit = tuple[int, bytes]


def edits(of: int) -> st.SearchStrategy[Edit]:
    return st.tuples(st.integers(0, of), st.binary(min_size=1, max_size=8))


def edited(content: bytes, edit: Edit) -> bytes:
    """Some bytes written over, or everything behind a place left out."""
    place, new = edit
    return content[:place] if new[0] == 0 else content[:place] + new + content[place + len(new) :]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    tiny.tiny_catalog().save(tmp_path / "c")
    save_file({"text": torch.ones(8, 2)}, tmp_path / "c" / "embeddings.safetensors")
    return tmp_path / "c"


def right_or_refused(folder: Path) -> None:
    with suppress(RecastError):
        found = load_catalog(folder)
        assert found.tokens.min() >= 0
        assert torch.equal(found.items_of(found.tokens.long()) >= 0, found.lengths > 0)


@pytest.mark.parametrize("content", CORPUS)
@pytest.mark.parametrize("name", ["sid.json", "catalog.parquet", "embeddings.safetensors"])
def test_the_corpus_of_catalogues(catalog: Path, name: str, content: bytes) -> None:
    (catalog / name).write_bytes(content)
    read: Callable[..., Any] = load_catalog
    if name == "embeddings.safetensors":
        read = lambda folder: load_embeddings(folder, tiny.tiny_catalog())  # noqa: E731
    with pytest.raises(RecastError, match="is damaged"):
        read(str(catalog))


@BRIEF
@given(
    st.dictionaries(
        st.sampled_from(["codebook_sizes", "first_token", "pad_token", "bos_token", "new"]), VALUES
    )
)
@example({"codebook_sizes": [3, 3, 2**31]})
@example({"codebook_sizes": []})
@example({"pad_token": 0, "bos_token": 0})
def test_sid_json(catalog: Path, changes: dict[str, object]) -> None:
    file = catalog / "sid.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | changes))
    right_or_refused(catalog)
    file.write_text(whole)


@BRIEF
@given(st.data())
def test_parquet(catalog: Path, data: st.DataObject) -> None:
    file = catalog / "catalog.parquet"
    whole = file.read_bytes()
    file.write_bytes(edited(whole, data.draw(edits(len(whole) - 1))))
    right_or_refused(catalog)
    file.write_bytes(whole)


@BRIEF
@given(st.data())
def test_embeddings(catalog: Path, data: st.DataObject) -> None:
    file = catalog / "embeddings.safetensors"
    whole = file.read_bytes()
    file.write_bytes(edited(whole, data.draw(edits(len(whole) - 1))))
    with suppress(RecastError):
        found = load_embeddings(str(catalog), tiny.tiny_catalog())
        assert found.shape == (8, 2)
        assert found.isfinite().all()
    file.write_bytes(whole)


NAMES = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]
NAMES += ["config_sentence_transformers.json"]
KEYS = ["type", "path", "pooling_mode", "pooling_mode_cls_token", "include_prompt", "prompts"]
KEYS += ["max_seq_length", "do_lower_case", "default_prompt_name"]


@BRIEF
@given(
    st.sampled_from(NAMES), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES), st.booleans()
)
@example("modules.json", {"type": "x.Pooling", "path": "\0"}, True)
def test_pooling(tmp_path: Path, name: str, content: object, in_list: bool) -> None:
    (tmp_path / "1_Pooling").mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps([content] if in_list else content))
    with suppress(RecastError):
        read_pooling(tmp_path, "x")
    (tmp_path / name).unlink()


CONFIG = ["model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
CONFIG += ["max_position_embeddings", "vocab_size", "pad_token_id", "is_encoder_decoder", "dtype"]
CONFIG += ["is_decoder", "auto_map", "intermediate_size", "layer_norm_eps", "quantization_config"]


@BRIEF
@given(st.dictionaries(st.sampled_from(CONFIG), VALUES, min_size=1, max_size=2))
@example({"dtype": 1e300})
@example({"hidden_size": 0})
@example({"vocab_size": 2**31})
@example({"num_hidden_layers": 2**31})
@example({"intermediate_size": 10**30})
def test_encoder_config(encoder: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tmp_path / "e"
    if not folder.exists():
        shutil.copytree(encoder, folder)
    whole = json.loads((encoder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | changes))
    with suppress(RecastError):
        found = embed_texts(["red", "blue newer"], str(folder))
        assert found.vectors.isfinite().all()


@BRIEF
@given(st.sampled_from(["tokenizer.json", "tokenizer_config.json", "model.safetensors"]), st.data())
def test_encoder_files(encoder: Path, tmp_path: Path, name: str, data: st.DataObject) -> None:
    folder = tmp_path / "e"
    if not folder.exists():
        shutil.copytree(encoder, folder)
    whole = (encoder / name).read_bytes()
    # Of the weights the header: a changed number is a number.
    end = 8 + int.from_bytes(whole[:8], "little") if name == "model.safetensors" else len(whole)
    (folder / name).write_bytes(edited(whole, data.draw(edits(end - 1))))
    with suppress(RecastError):
        found = embed_texts(["red", "blue newer"], str(folder))
        assert found.vectors.isfinite().all()
    (folder / name).write_bytes(whole)
