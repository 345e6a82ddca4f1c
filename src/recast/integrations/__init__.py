"""Adapters for the trainers of others; each file is the only one that imports its host.

Enters: the host's own trainer and data. Leaves: the same trainer with Recast's forward and groups.
"""
