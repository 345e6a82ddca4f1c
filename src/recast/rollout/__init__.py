"""Rollouts on the packed forward: prompts in, `RolloutGroups` out, most probable first."""
