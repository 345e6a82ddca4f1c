"""Amazon's reviews as McAuley's group publishes them, in 2014, 2018 and 2023: which keys hold what.

Sources: the pages of the three releases (jmcauley.ucsd.edu/data/amazon, nijianmo.github.io/amazon,
amazon-reviews-2023.github.io). An item's text is title, category, brand, as in TIGER
(arXiv 2305.05065) without the price; the lines of 2014 have their category in `categories`, a list
of paths of which the first counts, those of 2018 in `category`, those of 2023 in `categories` and
their brand in `store`. HTML's names of characters are read as characters; titles that hold the
script of a page (2018, "getTime") are none.
"""

from __future__ import annotations

import html
from typing import Any

from recast.data.lines import text_of
from recast.data.reviews import Layout


def _texts(fields: dict[str, Any]) -> list[str]:
    title = text_of(fields.get("title"))
    path = fields.get("category") or fields.get("categories") or fields.get("main_category")
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = path[0]
    parts = [text_of(part) for part in path] if isinstance(path, list) else [text_of(path)]
    # Some paths of 2018 go on with the features of the product, as HTML.
    end = next((i for i, part in enumerate(parts) if "</span>" in part), len(parts))
    brand = text_of(fields.get("brand") or fields.get("store")).removeprefix("by\n")
    title = "" if "getTime" in title else title
    return [html.unescape(part) for part in (title, *parts[:end], brand)]


_REVIEW = ("reviewerID", "asin", "unixReviewTime", "asin")
_TEXTS_2014, _TEXTS_2018 = ("title", "categories", "brand"), ("title", "category", "brand")

AMAZON_2014 = Layout("Amazon reviews 2014", *_REVIEW, _TEXTS_2014, _texts, marks=("helpful",))
AMAZON_2018 = Layout("Amazon reviews 2018", *_REVIEW, _TEXTS_2018, _texts)
AMAZON_2023 = Layout(
    *("Amazon reviews 2023", "user_id", "parent_asin", "timestamp", "parent_asin"),
    text_keys=("title", "categories", "store"),
    texts=_texts,
)
