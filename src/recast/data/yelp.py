"""Yelp's open data set: which keys of its reviews and of its businesses hold what.

Source: https://www.yelp.com/dataset/documentation/main. An item's text is name, categories, city;
its other files (users, tips, check-ins) are not read.
"""

from __future__ import annotations

from typing import Any

from recast.data.lines import text_of
from recast.data.reviews import Layout

_TEXT = ("name", "categories", "city")


def _texts(fields: dict[str, Any]) -> list[str]:
    return [text_of(fields.get(key)) for key in _TEXT]


YELP = Layout(
    *("Yelp", "user_id", "business_id", "date", "business_id"),
    text_keys=_TEXT,
    texts=_texts,
    marks=("review_id",),
)
