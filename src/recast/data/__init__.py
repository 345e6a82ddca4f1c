"""Interactions or rows: raw files in, one data folder out (events or rows, items, users, splits).

`movielens` and `tables` read (`delimited` CSV; `columns`, `ids`, `times` what is in it), `events`
filters and orders, `split` cuts by time, `folder` stores and loads, `history` looks back from a
row; `prepare` is the walk through them. Of prompts and their targets `plain_rows`, `minionerec` and
`openonerec` (with `pids`, `onerec_release`) read, what they return is in `row_tables`, `messages`
takes chats apart, `prepare_rows` is the walk, `row_facts` what it says and `rows` what is loaded.
"""
