"""All faults."""

from . import changes, company, damage, disk, interruptions
from .fault import Fault


def every() -> list[Fault]:
    """In the order of the table."""
    return [fault for module in (interruptions, disk, damage, changes, company) for fault in module.faults()]
