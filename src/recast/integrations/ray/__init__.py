"""Ray Train: the workers of a cluster make one run (extra `[ray]`)."""
