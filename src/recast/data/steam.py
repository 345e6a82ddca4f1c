"""Steam's reviews and games as McAuley's group publishes them: which keys hold what.

Source: https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data (version 2). A user is the
`username`, as in SASRec (arXiv 1808.09781): `user_id` is missing in more than half of the reviews.
An item's text is name, genres, developer. Days are the finest time.
"""

from __future__ import annotations

from typing import Any

from recast.data.lines import text_of
from recast.data.reviews import Layout


def _texts(fields: dict[str, Any]) -> list[str]:
    name = fields.get("app_name") or fields.get("title")
    return [text_of(part) for part in (name, fields.get("genres"), fields.get("developer"))]


STEAM = Layout(
    *("Steam", "username", "product_id", "date", "id"),
    text_keys=("app_name", "genres", "developer"),
    texts=_texts,
    skips=True,
)
