"""Flax NNX modules: the decoder and its parts. Nothing here loads, trains or shards."""
