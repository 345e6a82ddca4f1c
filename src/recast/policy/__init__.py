"""A policy: any Hugging Face causal LM plus the catalogue it writes, and its packed forward.

Enters: prompts and branches (rollouts or targets) as tokens. Leaves: log-probabilities.
"""
