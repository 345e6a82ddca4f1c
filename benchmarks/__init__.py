"""Side by side with the peers: `python -m benchmarks` runs everything and writes `RESULTS.md`."""
