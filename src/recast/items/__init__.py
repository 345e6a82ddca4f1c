"""Items: text and training events in, a `Catalog` of semantic IDs with its trie out.

`tokenize` runs the steps: `encoder` (and `pooling`) and `embed`, `quantize`, `collisions`, `card`,
then `catalog` and `trie`; `writes` holds the type.
"""
