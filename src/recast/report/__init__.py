"""What a person reads: the content of `results.json` in, tables out."""
