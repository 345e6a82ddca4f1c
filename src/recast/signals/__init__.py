"""Learning signals: `(RolloutGroups, rewards [B, G]) -> Signal`. Pure functions of torch alone."""
