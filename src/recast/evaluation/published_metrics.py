"""What two public evaluators give for their own files: published lists in, their numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator

from recast.evaluation.published import Entry, Format, Published

CUTS: dict[Format, tuple[int, ...]] = {"MiniOneRec": (1, 3, 5, 10, 20, 50), "OpenOneRec": (1, 32)}
"""Every k of the two evaluators: `topk_list` of calc.py, `k_values` of the benchmark's config."""

EVALUATORS: dict[Format, str] = {
    "MiniOneRec": "MiniOneRec's calc.py",
    "OpenOneRec": "OpenOneRec's recommendation/utils.py",
}


def own_numbers(published: Published) -> dict[str, float]:
    """What the evaluator of the format itself gives: texts compared as texts, all entries counted.

    MiniOneRec's calc.py: HR and NDCG of the first prediction that equals the target. OpenOneRec's
    `recommendation/utils.py`: `pass@k`, `position1_pass@k` (of the first target) and `recall@k`;
    its list of targets is made the set that its functions ask for. As there, repeated predictions
    take a place each. Cuts beyond the first list's length are left out by the first, not by the
    second, whose lists are then scored as they are.

    >>> from pathlib import Path
    >>> entry = Entry("", "", "<a_1><b_2>\\n", None, ["<a_0><b_0>", "<a_1><b_2>", "x"])
    >>> own_numbers(Published(path=Path(), format="MiniOneRec", task=None, entries=[entry]))
    {'hr@1': 0.0, 'ndcg@1': 0.0, 'hr@3': 1.0, 'ndcg@3': 0.6309297535714575}
    """
    sums: dict[str, float] = {}
    for entry in published.entries:
        by_format = _calc if published.format == "MiniOneRec" else _benchmark
        for name, value in by_format(entry, len(published.entries[0].lists)):
            sums[name] = sums.get(name, 0.0) + value
    return {name: total / len(published.entries) for name, total in sums.items()}


def _calc(entry: Entry, width: int) -> Iterator[tuple[str, float]]:
    target = entry.answer.strip(' \n"')
    texts = [text.strip('"\n').strip() for text in entry.lists]
    place = texts.index(target) if target in texts else math.inf
    for k in CUTS["MiniOneRec"]:
        if k <= width:
            yield f"hr@{k}", float(place < k)
            yield f"ndcg@{k}", 1 / math.log2(place + 2) if place < k else 0.0


def _benchmark(entry: Entry, width: int) -> Iterator[tuple[str, float]]:
    targets = [part.split("<|sid_end|>")[0].strip() for part in _ended(entry.answer)]
    targets = list(dict.fromkeys(target for target in targets if target))
    listed = [_generated(text) for text in entry.lists]
    for k in CUTS["OpenOneRec"]:
        hits = set(listed[:k]) & set(targets)
        yield f"pass@{k}", float(bool(hits))
        yield f"position1_pass@{k}", float(targets[:1] != [] and targets[0] in hits)
        yield f"recall@{k}", len(hits) / max(len(targets), 1)


def _ended(answer: str) -> list[str]:
    return [part for part in answer.split("<|sid_begin|>") if "<|sid_end|>" in part]


def _generated(text: str) -> str:
    """`extract_id_from_generation`."""
    text = text.strip()
    if "</think>" in text:
        text = text.split("</think>")[-1].strip()
    if "<|sid_begin|>" in text:
        for part in text.split("<|sid_begin|>"):
            if "<|sid_end|>" in part:
                if sid := part.split("<|sid_end|>")[0].strip():
                    return sid
            elif part.strip():
                return part.strip()
    return text
