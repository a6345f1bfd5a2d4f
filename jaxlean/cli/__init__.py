"""The command line: a file for each group of verbs."""

from jaxlean.cli.entry import main

__all__ = ["main"]
