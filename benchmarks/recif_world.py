"""Users with a hidden taste: sizes in, histories and targets whose best policy is known out.

Every item belongs to one of `tastes + 1` categories of its kind. A history is of the user's own
category and of the last one, which everybody watches and which is never asked for: one item of a
taste gives it away, and the last of every history is one. Targets are drawn without repetition, all
alike, from the *pool* that the prompt names:

    task          pool, for a user of taste t
    video, ad     videos, ads of category t
    product       products of category t + 1, modulo the tastes
    interactive   videos of category t that carry the keyword
    label_cond    videos of category t that carry the label

So a policy that has read the prompt can do no better than name items of the pool in any order. With
m items in the pool, n targets and k places, n - 1 others of m - 1 beside each target:

    Pass@k = 1 - C(m - k, n) / C(m, n)        Recall@k = min(k, m) / m        Pass@1 = n / m
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

LABELS = ("longview", "like", "follow", "forward", "not_interested")
KEYWORDS = (
    *("cooking", "travel", "football", "music", "gardens"),
    *("history", "cars", "science", "films", "running"),
)
TASKS = ("video", "ad", "product", "interactive", "label_cond")
KINDS = ("video", "ad", "product")
NOISE, SHORTEST, KEYWORDS_PER_USER = 0.3, 10, 2
CUTS = (1, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the world is made of."""

    users: int = 2000
    videos: int = 2000
    ads: int = 600
    products: int = 800
    tastes: int = 9
    history: int = 512
    """Items of the longest history; lengths are spread evenly on a log scale."""
    targets: int = 10
    """Of a row at most; 2 at least, but for label_cond, whose targets are those of video."""
    keywords: int = 5
    labels: int = 5
    test_frac: float = 0.2
    """Share of the users whose rows are for testing."""
    seed: int = 0

    def fault(self) -> str | None:
        """What is wrong with the sizes, in one line."""
        for field in fields(self):
            if (value := getattr(self, field.name)) < 0:
                return f"{field.name} is {value}: give 0 or more"
        groups = self.keywords * self.labels
        least = {"users": 2, "tastes": 1, "history": 1, "targets": 2, "keywords": 1, "labels": 1}
        # So that every pool, the narrowest among them, holds two items at least.
        least |= {"videos": 2 * groups * (self.tastes + 1)}
        least |= dict.fromkeys(("ads", "products"), 2 * (self.tastes + 1))
        most = {"keywords": len(KEYWORDS), "labels": len(LABELS), "test_frac": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                return f"{name} is {getattr(self, name)}: give {bound} or more"
        for name, bound in most.items():
            if getattr(self, name) > bound:
                return f"{name} is {getattr(self, name)}: give {bound} or less"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """All of a kind, category after category."""

    pids: list[int]
    sids: list[tuple[int, int, int]]
    """Distinct; those of products are made of the same numbers as those of videos."""
    captions: list[str]
    per_category: int

    def pool(self, category: int, every: int = 1, rest: int = 0) -> list[int]:
        """Items of a category, or those of them whose number within it has this remainder."""
        first = category * self.per_category
        return list(range(first + rest, first + self.per_category, every))


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """Histories and targets by kind, oldest first, as numbers within `Items`."""

    uid: int
    is_test: bool
    taste: int
    history: dict[str, list[int]]
    targets: dict[str, list[int]]
    keywords: dict[str, list[int]]
    """Targets of every keyword that the user asked for."""


def carries(sizes: Sizes, item: int, per_category: int) -> tuple[int, int]:
    """Label and keyword of a video: by its number within the category."""
    number = item % per_category
    return number % sizes.labels, number // sizes.labels % sizes.keywords


def make_items(sizes: Sizes, kind: str, rng: np.random.Generator) -> Items:
    """SIDs say the category, then what a video carries, then which it is."""
    count = {"video": sizes.videos, "ad": sizes.ads, "product": sizes.products}[kind]
    categories = sizes.tastes + 1
    per_category = count // categories
    first_code = categories if kind == "ad" else 0
    first_pid = {"video": 10**7, "ad": 2 * 10**7, "product": 9 * 10**7}[kind]
    groups = sizes.labels * sizes.keywords
    sids, captions = [], []
    for item in range(per_category * categories):
        category, number = divmod(item, per_category)
        sids.append((first_code + category, number % groups, number // groups))
        label, keyword = carries(sizes, item, per_category)
        words = f"about {KEYWORDS[keyword]} to {LABELS[label]}" if kind == "video" else "to click"
        captions.append(f"{kind} {number} of category {category}, {words}")
    pids = (first_pid + rng.permutation(len(sids))).tolist()
    return Items(pids=pids, sids=sids, captions=captions, per_category=per_category)


def make_users(sizes: Sizes, items: dict[str, Items], rng: np.random.Generator) -> list[User]:
    """Tastes are unevenly liked: the c-th by 1 / c of those who like the first."""
    odds = 1 / np.arange(1, sizes.tastes + 1)
    tastes = rng.choice(sizes.tastes, sizes.users, p=odds / odds.sum()).tolist()
    num_test = round(sizes.test_frac * sizes.users)
    is_test = rng.permutation(np.arange(sizes.users) < num_test).tolist()
    return [_user(sizes, items, uid, tastes[uid], is_test[uid], rng) for uid in range(sizes.users)]


def _user(
    sizes: Sizes,
    items: dict[str, Items],
    uid: int,
    taste: int,
    is_test: bool,
    rng: np.random.Generator,
) -> User:
    of = {"video": taste, "ad": taste, "product": (taste + 1) % sizes.tastes}
    shortest = min(SHORTEST, sizes.history)
    history = {}
    for kind in KINDS:
        length = int(shortest * (sizes.history / shortest) ** rng.random())
        is_own = rng.random(length) >= NOISE
        is_own[-1] = True
        category = np.where(is_own, of[kind], sizes.tastes)
        size = items[kind].per_category
        history[kind] = (category * size + rng.integers(size, size=length)).tolist()
    asked = rng.choice(sizes.keywords, min(KEYWORDS_PER_USER, sizes.keywords), replace=False)
    return User(
        uid=uid,
        is_test=is_test,
        taste=taste,
        history=history,
        targets={kind: _drawn(items[kind].pool(of[kind]), sizes, rng) for kind in KINDS},
        keywords={
            KEYWORDS[word]: _drawn(keyword_pool(sizes, items["video"], taste, word), sizes, rng)
            for word in asked.tolist()
        },
    )


def keyword_pool(sizes: Sizes, videos: Items, taste: int, keyword: int) -> list[int]:
    pool = videos.pool(taste)
    return [item for item in pool if carries(sizes, item, videos.per_category)[1] == keyword]


def label_pool(sizes: Sizes, videos: Items, taste: int, label: int) -> list[int]:
    return videos.pool(taste, every=sizes.labels, rest=label)


def _drawn(pool: Sequence[int], sizes: Sizes, rng: np.random.Generator) -> list[int]:
    """2 to `targets` of the pool, all sets of a size alike."""
    count = int(rng.integers(2, min(sizes.targets, len(pool)) + 1))
    return [int(name) for name in rng.choice(pool, count, replace=False)]


def best_policy(pool: int, targets: int, cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Pass@k and Recall@k that the best policy expects of a row.

    >>> best_policy(4, 2, cuts=(1, 2))  # of the 6 pairs of targets one avoids both that are named
    {'pass@1': 0.5, 'recall@1': 0.25, 'pass@2': 0.8333333333333334, 'recall@2': 0.5}
    """
    found: dict[str, float] = {}
    for k in cuts:
        missed = math.comb(max(pool - k, 0), targets) / math.comb(pool, targets)
        found |= {f"pass@{k}": 1 - missed, f"recall@{k}": min(k, pool) / pool}
    return found


def of_list(names: Sequence[int], targets: Sequence[int]) -> dict[str, float]:
    """Pass@k and Recall@k of one list for one row.

    >>> of_list([7, 5, 9], targets=[5, 8])
    {'pass@1': 0.0, 'recall@1': 0.0, 'pass@32': 1.0, 'recall@32': 0.5}
    """
    found: dict[str, float] = {}
    for k in CUTS:
        hits = len(set(names[:k]) & set(targets))
        found |= {f"pass@{k}": float(hits > 0), f"recall@{k}": hits / len(targets)}
    return found


def most_popular(targets: Sequence[Sequence[int]]) -> list[int]:
    """The items that are asked for most often, equals by number."""
    counts = Counter(item for row in targets for item in row)
    return sorted(counts, key=lambda item: (-counts[item], item))[: max(CUTS)]
