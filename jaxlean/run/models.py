"""Which models load, and what each can be trained for: `jaxlean models`."""

import sys
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxlean.hub import families as families_package
from jaxlean.hub.families import FAMILIES
from jaxlean.hub.family import Family

# What holds for every family that is listed.
ALWAYS = (
    "Each: LoRA, rsLoRA, DoRA (but for experts), PiSSA and full fine-tuning, remat, frozen bases in int8 and NF4, "
    "meshes, plans (but for mobilenet and efficientnet); files as transformers and PEFT write them, in and out."
)


class Entry(NamedTuple):
    """A family, as it is listed."""

    model_type: str
    tasks: tuple[str, ...]
    takes: str
    about: str


def entries(families: Mapping[str, Family] = FAMILIES) -> list[Entry]:
    """Every family, decoders first, each kind by its name."""
    package = families_package.__name__

    def entry(family: Family) -> Entry:
        # the first line of a family's file says what the family is; what makes its config may stand in another file
        file = sys.modules[f"{package}.{family.model_type}"]
        return Entry(family.model_type, family.tasks, family.takes, (file.__doc__ or "").strip().partition("\n")[0])

    found = [entry(family) for family in families.values()]
    return sorted(found, key=lambda each: ("generate" not in each.tasks, each.takes != "text", each.model_type))


def print_models() -> None:
    """The table, and what holds for all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model_type", no_wrap=True)
    table.add_column("tasks")
    table.add_column("takes", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for entry in entries():
        table.add_row(entry.model_type, ", ".join(entry.tasks), entry.takes, escape(entry.about))
    console = Console()
    console.print(table)
    console.print(ALWAYS, highlight=False)
    console.print("Another one: 'Add a family' in CONTRIBUTING.md says how, in one file.", highlight=False)
