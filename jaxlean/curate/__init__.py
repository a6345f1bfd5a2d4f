"""Fewer, better rows: `curate.py` is the story; each step is one file, named as in the config."""
