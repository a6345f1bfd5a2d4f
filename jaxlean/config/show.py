"""`jaxlean config`: the keys as tables for people, one for each section."""

from collections.abc import Sequence

from jaxlean.config.keys import Key, every, find

# Above this many characters a default stands in the description's column instead of its own.
_LONG_DEFAULT = 24


def print_keys(wanted: str | None = None) -> None:
    """Print all keys, those of a section, or one.

    Args:
        wanted: a section (`train`), a key (`train.remat`), an alias or a bare name (`lora_rank`); default: all.

    Raises:
        ConfigError: there is no such key.
    """
    from rich.console import Console

    console = Console()
    keys = list(every()) if wanted is None else find(wanted)
    shown: dict[str, str] = {}
    for head, group in _groups(keys):
        if head is not None:
            title = f"\n[bold]{_escaped(head.path)}[/bold]  {_escaped(_kind(head))}{_escaped(head.about)}"
            first = shown.setdefault(head.section, head.path)
            as_there = f" Keys: those of {first}." if first != head.path and group else ""
            console.print(f"{title}{as_there}", highlight=False)
            group = [] if as_there else group
        if group:
            console.print(_table(group))


def _groups(keys: Sequence[Key]) -> list[tuple[Key | None, list[Key]]]:
    """Keys by the section that they stand in, each with that section's own line."""
    sections = {f"{key.path}": key for key in keys if key.section}
    found: dict[str | None, list[Key]] = {}
    for key in keys:
        if key.section:
            found.setdefault(key.path, [])
        else:
            parent = key.path.rpartition(".")[0].rstrip("[]{}")
            found.setdefault(parent if parent in sections else None, []).append(key)
    return [(sections.get(path) if path is not None else None, group) for path, group in found.items()]


def _kind(key: Key) -> str:
    return "" if key.type == "section" else f"({key.type}; default {key.default or 'none'}) "


def _table(keys: Sequence[Key]) -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("key", overflow="fold", style="bold")
    table.add_column("type", overflow="fold", max_width=30)
    table.add_column("default", overflow="fold", max_width=_LONG_DEFAULT)
    table.add_column("what it says", overflow="fold", ratio=1)
    for key in keys:
        also = f"\nalso: {', '.join(key.aliases)}" if key.aliases else ""
        table.add_row(*map(_escaped, (key.path, key.type, key.default, f"{key.about}{also}")))
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
