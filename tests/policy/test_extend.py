"""Rows of semantic IDs in a model of one's own: where they stand and how they begin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

from recast.config import ModelConfig
from recast.items.catalog import Catalog, build_catalog, build_token_catalog
from recast.items.names import SidNames
from recast.policy.create import create_policy
from recast.policy.extend import add_sid_tokens, choose_new_rows, title_weights, vector_rows
from recast.policy.load import load_policy, save_policy
from recast.types import RecastError

TEXTS = ["w4 w4 W5", "w5 nothing", "w6 <a_1> w7", "", "nothing", "w6 w7", "", ""]
"""Of the items of `tiny.CODES`; `nothing` is no word of the tokenizer, <a_1> a semantic ID."""


def wide_catalog() -> Catalog:
    """Two levels of 256 codes, so that the deviation of new rows is known within some percent."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.stack([torch.randperm(256, generator=draw) for _ in range(2)], dim=1)
    return build_catalog(codes, (256, 256))


def titled_catalog() -> Catalog:
    return build_catalog(tiny.CODES, tiny.SIZES, texts=TEXTS)


def phi() -> Any:
    """An output layer of its own, with a bias, whose numbers are far from the embedding's."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PhiConfig(vocab_size=300, intermediate_size=8, pad_token_id=0, **shape)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        model.lm_head.weight.normal_(3.0, 0.5)
        model.lm_head.bias.normal_(-2.0, 4.0)
    return model


def test_new_rows_spread_like_the_own_ones_of_every_table() -> None:
    model = phi()
    tables = (model.get_input_embeddings(), model.lm_head)
    before = [table.weight.clone() for table in tables]
    bias = model.lm_head.bias.clone()
    catalog = add_sid_tokens(model, None, wide_catalog(), "spread", 3, "m")
    assert (catalog.first_token, catalog.vocab_size) == (300, 812)
    tables = (model.get_input_embeddings(), model.lm_head)
    for table, own in zip(tables, before, strict=True):
        assert table.weight[:300].equal(own)
        new = table.weight[300:].detach()
        assert len(new) == 512
        torch.testing.assert_close(new.std(0), own.std(0), rtol=0.15, atol=0.0)
        assert ((new.mean(0) - own.mean(0)).abs() < 0.2 * own.std(0)).all()
        assert len(new.unique(dim=0)) == 512
    assert model.lm_head.bias[:300].equal(bias)
    new = model.lm_head.bias[300:].detach()
    assert float(new.std()) == pytest.approx(4.0, rel=0.15)
    assert float(new.mean()) == pytest.approx(-2.0, abs=0.8)


def test_the_seed_decides_how_new_rows_begin() -> None:
    def rows(seed: int) -> torch.Tensor:
        model = phi()
        add_sid_tokens(model, None, wide_catalog(), "spread", seed, "m")
        return model.get_input_embeddings().weight

    assert rows(3).equal(rows(3))
    assert not rows(3).equal(rows(4))


def test_shares_of_the_words_of_a_codes_items() -> None:
    tokenizer = tiny.tiny_tokenizer(8)
    tokenizer.add_tokens(["<a_1>"])
    catalog = replace(titled_catalog(), first_token=8)
    catalog = replace(catalog, tokens=catalog.tokens + 6)
    weights = title_weights(tokenizer, catalog).to_dense()
    wanted = torch.zeros(10, 8)
    wanted[0, 4:8] = torch.tensor([2 / 9, 4 / 9, 1 / 6, 1 / 6])  # <a_0>: items 0, 1, 2
    wanted[2, 6:8] = 0.5  # <a_2>: item 5
    wanted[3, 4:8] = torch.tensor([2 / 9, 4 / 9, 1 / 6, 1 / 6])  # <b_0>: items 0, 1, 5
    wanted[4, 6:8] = 0.5  # <b_1>: item 2
    wanted[6, 6:8] = 0.5  # <c_0>: items 2 and 4, which has no word
    wanted[7, 4:8] = torch.tensor([1 / 3, 1 / 6, 1 / 4, 1 / 4])  # <c_1>: items 0 and 5
    wanted[8, 5] = 1.0  # <c_2>: item 1
    torch.testing.assert_close(weights, wanted)


def test_rows_of_titles_begin_beside_their_mean_and_never_alike() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny.tiny_config("llama", 8))
    own = [t.weight.detach() for t in (model.get_input_embeddings(), model.lm_head)]
    add_sid_tokens(model, tiny.tiny_tokenizer(8), titled_catalog(), "text", 0, "m")
    for table, old in zip((model.get_input_embeddings(), model.lm_head), own, strict=True):
        rows, spread = table.weight.detach()[8:], old.std(0, correction=0)
        off = (rows[2] - (old[6] + old[7]) / 2) / spread  # <a_2>
        assert 0.05 < float(off.std()) < 0.2
        off = (rows[0] - (2 * old[4] + 4 * old[5] + 1.5 * (old[6] + old[7])) / 9) / spread
        assert 0.05 < float(off.std()) < 0.2
        assert 0.5 < float(((rows[1] - old.mean(0)) / spread).std()) < 1.5  # no item with a text
        assert not rows[2].equal(rows[4])  # of the same text
        assert table.weight[:8].equal(old)


def test_spare_rows_come_first_and_only_what_lacks_is_added() -> None:
    for rows, after in ((40, 40), (20, 22), (12, 22)):
        model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", rows))
        before = model.get_input_embeddings().weight.detach().clone()
        tokenizer = tiny.tiny_tokenizer(12)
        catalog = add_sid_tokens(model, tokenizer, tiny.tiny_catalog(), "spread", 0, "m")
        assert catalog.first_token == 12
        assert tokenizer.convert_tokens_to_ids("<c_3>") == 21 == catalog.vocab_size - 1
        table = model.get_input_embeddings().weight
        assert len(table) == model.config.vocab_size == after
        assert table[:12].equal(before[:12])
        assert table[22:].equal(before[22:])
        assert not any(row.equal(old) for row, old in zip(table[12:22], before[12:], strict=False))


@pytest.mark.parametrize(
    ("bos", "eos", "pad", "wanted"),
    [
        (1, 2, 3, (1, 3)),  # its own pad
        (1, 2, 1, (1, 2)),  # it pads with its BOS: its end
        (1, 2, None, (1, 2)),
        (None, 2, None, (2, 0)),  # begins with its end, has no other
        (0, 0, 0, (0, 1)),
        (1, [1, 5], None, (1, 5)),
        (1, 2, -1, (1, 2)),
        (1, 50, 3, (1, 3)),  # an end that no token is harms nobody
    ],
)
def test_the_pad_is_no_token_of_a_prompt(
    bos: int | None, eos: Any, pad: int | None, wanted: tuple[int, int]
) -> None:
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    config = GPT2Config(**shape, vocab_size=9, bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    model = AutoModelForCausalLM.from_config(config)
    catalog = add_sid_tokens(model, None, tiny.tiny_catalog(), "spread", 0, "m")
    assert (catalog.bos_token, catalog.pad_token) == wanted
    # Without a mask `generate` takes the pads of a prompt for padding, unless they are ends too.
    hidden = model.generation_config.pad_token_id
    ends = eos if isinstance(eos, list) else [eos]
    assert hidden is None or hidden != wanted[0] or hidden in ends


def test_an_end_among_the_semantic_ids_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", 40))
    model.config.eos_token_id = 15
    with pytest.raises(RecastError, match="m has eos_token_id 15 and 12 tokens, behind which"):
        add_sid_tokens(
            model, tiny.tiny_tokenizer(12), tiny.tiny_catalog(), "spread", 0, "m"
        )  # fmt: skip


def test_which_start_is_taken(tmp_path: Path) -> None:
    tokenizer, config = tiny.tiny_tokenizer(9), ModelConfig(path=str(tmp_path))
    assert choose_new_rows(config, titled_catalog(), tokenizer) == "text"
    assert choose_new_rows(config, titled_catalog(), None) == "spread"
    assert choose_new_rows(config, tiny.tiny_catalog(), tokenizer) == "spread"
    assert choose_new_rows(ModelConfig(), titled_catalog(), None) is None
    asked = replace(config, new_rows="spread")
    assert choose_new_rows(asked, titled_catalog(), tokenizer) == "spread"
    asked = replace(config, new_rows="text")
    with pytest.raises(RecastError, match=r"model.new_rows is 'text': .* has no tokenizer, give"):
        choose_new_rows(asked, titled_catalog(), None)
    with pytest.raises(RecastError, match=r"model.new_rows is 'text': no item has a text, give"):
        choose_new_rows(asked, tiny.tiny_catalog(), tokenizer)
    with pytest.raises(RecastError, match=r"model.new_rows is 'text': it belongs to model.path"):
        ModelConfig(new_rows="text")
    with pytest.raises(
        RecastError, match=r"model.new_rows is 'vectors': it belongs to a new model"
    ):
        replace(config, new_rows="vectors")
    save_policy(tiny.tiny_policy("llama", tiny.tiny_catalog()), tmp_path / "policy")
    config = ModelConfig(path=str(tmp_path / "policy"), new_rows="text")
    with pytest.raises(RecastError, match=r"model.new_rows is 'text': .*policy is a policy and"):
        create_policy(config, tiny.tiny_catalog(), window=5, seed=0)


def test_which_start_a_new_model_takes() -> None:
    """Vectors where there are some, unless noise is asked for."""
    catalog, config = tiny.tiny_catalog(), ModelConfig(new_rows="vectors")
    assert choose_new_rows(ModelConfig(), catalog, None, has_vectors=True) == "vectors"
    assert choose_new_rows(config, catalog, None, has_vectors=True) == "vectors"
    assert choose_new_rows(ModelConfig(new_rows="spread"), catalog, None) == "spread"
    with pytest.raises(
        RecastError, match=r"model.new_rows is 'vectors': there are no vectors, give"
    ):
        create_policy(config, catalog, window=5, seed=0)
    texts = build_token_catalog([[4, 5], [5, 4]], [2, 2], bos_token=1, pad_token=0)
    with pytest.raises(
        RecastError, match=r"model.new_rows is 'vectors': the catalogue has no semantic IDs"
    ):
        choose_new_rows(config, texts, None, has_vectors=True)


def test_a_code_begins_as_what_its_items_have_in_common() -> None:
    """The example of the docstring; the same without an item's own token, where the second level
    is what the first one leaves over: -1, 1 and 0; code 2 has no item."""
    vectors = torch.tensor([[1.0], [3.0], [8.0]])
    by_item = build_catalog([[0, 0], [0, 1], [1, 2]], (2, 3))
    rows = vector_rows(by_item, vectors, 2) * (26 / 3) ** 0.5
    wanted = torch.tensor([[-2.0, 0], [4, 0], [-3, 0], [-1, 0], [4, 0]])
    torch.testing.assert_close(rows, wanted)
    rows = vector_rows(build_catalog([[0, 0], [0, 1], [1, 0]], (2, 3)), vectors, 1)
    torch.testing.assert_close(rows[:, 0] * (26 / 3) ** 0.5, torch.tensor([-2.0, 4, -0.5, 1, 0]))
    assert not vector_rows(by_item, torch.full((3, 4), 0.1), 2).any()  # nothing to tell apart
    assert not vector_rows(build_catalog([[0]], (1,)), torch.ones(1, 3), 4).any()


def test_wide_vectors_are_turned_to_their_principal_axes() -> None:
    """Of 60 items in 3 directions of 40 dimensions the first two stay, at their distances."""
    draw = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(40, 40, generator=draw)).Q[:3]
    flat = torch.randn(60, 3, generator=draw).sub(5) * torch.tensor([9.0, 4.0, 1e-4])
    catalog = build_catalog(torch.arange(60)[:, None], (60,))
    rows = vector_rows(catalog, flat @ turn, 2)
    assert float(rows.std(correction=0)) == pytest.approx(1)
    ratio = torch.cdist(rows, rows) / torch.cdist(flat, flat)
    ratio = ratio[~torch.eye(60, dtype=torch.bool)]
    assert float(ratio.max() / ratio.min()) < 1.01
    few = vector_rows(build_catalog([[0], [1]], (2,)), flat[:2] @ turn, 8)
    torch.testing.assert_close(few[0], -few[1])
    assert few[0].count_nonzero() >= 1


@pytest.mark.parametrize("tie", [True, False])
def test_vectors_are_added_to_the_noise_of_every_table(tie: bool) -> None:
    """Twice as far as the noise is wide; whatever else a seed draws stays as it is."""
    catalog, width = tiny.tiny_catalog(), 6
    config = ModelConfig(hidden_size=width, initializer_range=0.1, tie_embeddings=tie)
    vectors = torch.randn(catalog.num_items, 4, generator=torch.Generator().manual_seed(0))
    noise, begun = (
        dict(create_policy(config, catalog, 5, 0, given).model.named_parameters())
        for given in (None, vectors)
    )
    tables = [name for name in noise if "embed_tokens" in name or "lm_head" in name]
    assert len(tables) == 2 - tie
    for name, weight in begun.items():
        change = (weight - noise[name]).detach()
        if name in tables:
            rows = change[catalog.first_token :]
            torch.testing.assert_close(rows, 0.2 * vector_rows(catalog, vectors, width))
            change = change[: catalog.first_token]
        assert not change.any()


def test_a_backbone_that_knows_all_names_is_taken_as_it_is() -> None:
    names = SidNames(pattern="<s_{level}_{code}>", begin="<|b|>", end="<|e|>")
    given = build_catalog(tiny.CODES, tiny.SIZES, texts=TEXTS, names=names)
    tokenizer, config = tiny.tiny_tokenizer(12), ModelConfig(path="m")
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", 12))
    assert choose_new_rows(config, given, tokenizer) == "text"
    catalog = add_sid_tokens(model, tokenizer, given, "text", 0, "m")
    assert (catalog.first_token, catalog.vocab_size) == (12, 24)
    assert catalog.begin_tokens + catalog.end_tokens == (22, 23)
    assert tokenizer.convert_tokens_to_ids(["<s_a_0>", "<s_c_3>", "<|b|>", "<|e|>"]) == [
        *(12, 21),
        *(22, 23),
    ]
    rows = model.get_input_embeddings().weight.detach().clone()
    assert choose_new_rows(config, given, tokenizer) is None
    again = add_sid_tokens(model, tokenizer, given, None, 1, "m")
    assert again.tokens.equal(catalog.tokens)
    assert (again.first_token, again.bos_token, again.pad_token) == (12, 1, catalog.pad_token)
    assert model.get_input_embeddings().weight.equal(rows)
    with pytest.raises(
        RecastError, match="m knows the semantic IDs and has their rows, leave it o"
    ):
        choose_new_rows(replace(config, new_rows="text"), given, tokenizer)


def test_items_without_a_semantic_id_pad_with_the_models_pad() -> None:
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", 12))
    model.config.pad_token_id = 5
    given = build_catalog([[0], [-1]], (3,), texts=["w4", "w5"])
    catalog = add_sid_tokens(model, tiny.tiny_tokenizer(12), given, "text", 0, "m")
    assert catalog.tokens.tolist() == [[12], [5]]
    assert catalog.codes.tolist() == [[0], [-1]]


def test_a_checkpoint_that_sorted_its_names_as_text_stays_as_it_is(tmp_path: Path) -> None:
    """MiniOneRec's way: <a_10> before <a_2>, no name for a code without an item."""
    codes = torch.tensor([[0, 2], [2, 10], [10, 2]])
    given = build_catalog(codes, (11, 11), item_ids=["x", "y", "z"])
    tokenizer = tiny.tiny_tokenizer(12)
    words = ["<a_0>", "<a_10>", "<a_2>", "<b_10>", "<b_2>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny.tiny_config("qwen3", 17))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = create_policy(ModelConfig(path=str(tmp_path / "model")), given, window=4, seed=0)
    assert policy.model.get_input_embeddings().weight.equal(model.get_input_embeddings().weight)
    assert policy.catalog.tokens.tolist() == [[12, 16], [14, 15], [13, 16]]
    save_policy(policy, tmp_path / "policy")
    given.save(tmp_path / "given")
    # The catalogue as it was given says the same, also with an item more.
    more = build_catalog([*codes.tolist(), [0, 10]], (11, 11), item_ids=["x", "y", "z", "new"])
    more.save(tmp_path / "more")
    assert load_policy(tmp_path / "policy").catalog.tokens.equal(policy.catalog.tokens)
    other = load_policy(tmp_path / "policy", tmp_path / "given").catalog
    assert other.tokens.equal(policy.catalog.tokens)
    config = ModelConfig(path=str(tmp_path / "policy"))
    for catalog, last in ((given, [13, 16]), (policy.catalog, [13, 16]), (more, [12, 15])):
        assert create_policy(config, catalog, 4, 0).catalog.tokens[-1].tolist() == last
    unnamed = build_catalog([*codes.tolist(), [3, 10]], (11, 11), item_ids=["x", "y", "z", "new"])
    with pytest.raises(RecastError, match="policy knows no <a_3>, which item 'new' writes"):
        create_policy(config, unnamed, 4, 0)
