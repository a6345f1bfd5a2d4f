"""One run, from a config to an adapter on disk."""
