"""Which golden files there are: the shapes, the settings, and the changes that must show in what the models give.

make_golden.py writes them. A new family is a few more `Case`s.
"""

from cases import decoders, encoders, gemma, llama, mixtures, olmo, vision
from cases.adapters import ADAPTED, ADAPTERS
from cases.case import LLAMA3, YARN, Case, rope

CASES = [*llama.CASES, *gemma.CASES, *decoders.CASES, *olmo.CASES, *mixtures.CASES, *encoders.CASES, *vision.CASES]

__all__ = ["ADAPTED", "ADAPTERS", "CASES", "LLAMA3", "YARN", "Case", "rope"]
