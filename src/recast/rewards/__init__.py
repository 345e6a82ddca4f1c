"""Rewards: `RolloutGroups` in, one number per rollout out, `Float[B, G]`. Pure functions."""
