"""Every publisher's lines, by hand, read through the detection."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recast.data.formats import find_format
from recast.data.tables import Tables
from recast.types import RecastError

REVIEW = {"reviewerID": "A2", "asin": "0000013714", "overall": 5.0, "unixReviewTime": 1252800000}
YELP = {"review_id": "r", "user_id": "u", "business_id": "b-1", "date": "2018-07-07 22:09:11"}


def write(file: Path, *rows: dict[str, Any], literal: bool = False) -> Path:
    lines = "\n".join(repr(row) if literal else json.dumps(row) for row in rows)
    file.write_bytes(gzip.compress(lines.encode()) if file.suffix == ".gz" else lines.encode())
    return file


def read(path: Path, items: Path | None = None) -> Tables:
    found = find_format(path, str(items) if items else None)
    assert found is not None
    return found.read()


def test_amazon_2014(tmp_path: Path) -> None:
    write(tmp_path / "reviews_X_5.json.gz", REVIEW | {"helpful": [2, 3]})
    meta = {
        "asin": "0000013714",
        "title": "Heaven's  Songs &amp; Hymns",
        "categories": [["Books", "Music"], ["Other"]],
        "brand": "Hal",
    }
    more = [{"asin": "0000031852", "categories": [["Toys"]]}, meta | {"title": "again"}]
    write(tmp_path / "meta_X.json.gz", meta, *more, literal=True)
    tables = read(tmp_path)
    assert tables.events.rows() == [("A2", "0000013714", 1252800000)]
    assert tables.items.rows() == [("0000013714", "Heaven's Songs & Hymns Books Music Hal")]
    assert tables.notes == [
        "Amazon reviews 2014: users reviewerID, items asin, times unixReviewTime of "
        "reviews_X_5.json.gz; texts title, categories, brand of meta_X.json.gz",
        "times from 1252800000 (2009-09-13 00:00) to 1252800000 (2009-09-13 00:00), read as "
        "seconds",
        "second lines of an item, left out: 1",
        "items of meta_X.json.gz without an event, left out: 1",
    ]


def test_amazon_2018(tmp_path: Path) -> None:
    events = write(tmp_path / "X.json.gz", REVIEW | {"verified": True})
    path = ["Office", "Pens", "</span></span></span>", "Fine tip"]
    meta = {"asin": "0000013714", "title": "Pen", "category": path, "brand": "by\n\n  Bic"}
    items = write(tmp_path / "meta_X.json.gz", meta)
    tables = read(events, items)
    assert tables.items.rows() == [("0000013714", "Pen Office Pens Bic")]
    assert tables.notes[0].startswith("Amazon reviews 2018: ")
    write(items, meta | {"title": "var x = getTime();", "brand": ""})
    assert read(tmp_path).items["text"].to_list() == ["Office Pens"]
    assert read(events).items.is_empty()


def test_amazon_2023(tmp_path: Path) -> None:
    review = {"user_id": "AE", "asin": "B1", "parent_asin": "B2", "timestamp": 1588687728923}
    write(tmp_path / "X.jsonl", review)
    meta = {"parent_asin": "B2", "title": "Cream", "main_category": "All Beauty", "store": "S"}
    write(tmp_path / "meta_X.jsonl", meta | {"categories": []})
    tables = read(tmp_path)
    assert tables.events.rows() == [("AE", "B2", 1588687728923)]
    assert tables.items.rows() == [("B2", "Cream All Beauty S")]


def test_yelp(tmp_path: Path) -> None:
    write(tmp_path / "yelp_academic_dataset_review.json", YELP)
    shop = {"business_id": "b-1", "name": "Joe's", "categories": "Bars, Pubs", "city": "Reno"}
    write(tmp_path / "yelp_academic_dataset_business.json", shop)
    write(tmp_path / "yelp_academic_dataset_checkin.json", {"business_id": "b-1", "date": "x"})
    write(tmp_path / "yelp_academic_dataset_tip.json", {"business_id": "b", "user_id": "u"})
    tables = read(tmp_path)
    assert tables.events.rows() == [("u", "b-1", 1531001351 * 10**6)]
    assert tables.items.rows() == [("b-1", "Joe's Bars, Pubs Reno")]


def test_steam(tmp_path: Path) -> None:
    review = {"username": '"NaN"', "product_id": "10", "date": "2017-12-17", "text": "fun"}
    write(tmp_path / "steam_reviews.json.gz", review, review | {"username": ""}, literal=True)
    game = {"app_name": "Half-Life", "genres": ["Action"], "developer": "Valve", "id": "10"}
    write(tmp_path / "steam_games.json.gz", game, {"app_name": "?", "genres": []}, literal=True)
    tables = read(tmp_path)
    assert tables.events.rows() == [('"NaN"', "10", 1513468800 * 10**6)]
    assert tables.items.rows() == [("10", "Half-Life Action Valve")]
    assert "lines without a username, left out: 1" in tables.notes
    assert "lines of steam_games.json.gz without a id, left out: 1" in tables.notes


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"reviewerID": None}, r"line 2 has no 'reviewerID' \(it holds reviewerID, asin"),
        ({"asin": 1.5}, r"line 2: asin is 1.5: give a UTF-8 text or an integer"),
        ({"unixReviewTime": "soon"}, r"line 2: unixReviewTime is 'soon': give a number or a date"),
        ({"unixReviewTime": [1]}, r"line 2: unixReviewTime is \[1\]: give a number or a date"),
        ({"unixReviewTime": None}, r"line 2 has no 'unixReviewTime'"),
        ({"unixReviewTime": 10**30}, r"line 2: unixReviewTime is '10+': give a number"),
    ],
)
def test_lines_without_their_fields(tmp_path: Path, change: dict[str, Any], error: str) -> None:
    file = write(tmp_path / "X.json", REVIEW, REVIEW | change)
    with pytest.raises(RecastError, match=f"X.json, {error}"):
        read(file)


def test_metadata_of_another_category(tmp_path: Path) -> None:
    events = write(tmp_path / "X.json", REVIEW)
    items = write(tmp_path / "meta_Y.json", {"asin": "B000000001", "title": "T"})
    with pytest.raises(RecastError, match=r"meta_Y.json has a row for 0 of the 1 items of .*X.jso"):
        read(events, items)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (REVIEW, r"reviews \(Amazon reviews 2018\)"),
        ({"business_id": "b", "name": "n"}, "lines without 'asin'"),
    ],
)
def test_items_that_are_none(tmp_path: Path, row: dict[str, Any], what: str) -> None:
    events, items = write(tmp_path / "X.json", REVIEW), write(tmp_path / "Y.json", row)
    with pytest.raises(RecastError, match=f"items is .*Y.json', which holds {what}: give the file"):
        read(events, items)
