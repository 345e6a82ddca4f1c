"""Interactions: raw files in, one data folder out (events, items, users, splits).

`movielens` and `tables` read (`delimited` CSV; `columns`, `ids`, `times` what is in it), `events`
filters and orders, `split` cuts by time, `folder` stores and loads, `history` looks back from a
row; `prepare` is the walk through them.
"""
