"""Configs of other projects: read, and made into ours with a word on every key."""

from jaxlean.convert.convert import Conversion, convert
from jaxlean.convert.detect import hint

__all__ = ["Conversion", "convert", "hint"]
