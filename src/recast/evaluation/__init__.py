"""Judging: ranks of targets, metrics, their intervals, comparisons, and what goes with them."""
