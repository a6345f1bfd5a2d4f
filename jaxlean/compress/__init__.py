"""Smaller models of trained ones: pruning."""
