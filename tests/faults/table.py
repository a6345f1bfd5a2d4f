"""All faults."""

from . import changes, company, damage, disk, evaluators, interruptions, searches
from .fault import Fault


def every() -> list[Fault]:
    """In the order of the table."""
    modules = (interruptions, disk, damage, changes, company, searches, evaluators)
    return [fault for module in modules for fault in module.faults()]
