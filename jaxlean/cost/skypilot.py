"""Current prices from the SkyPilot catalog, where it is on this machine (`~/.sky/catalogs/v*/<cloud>/vms.csv`).

SkyPilot keeps these tables up to date for whoever uses it (docs.skypilot.co, "sky show-gpus" reads the same files).
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

_BY_CORES = {"tpu-v2", "tpu-v3", "tpu-v4", "tpu-v5p"}


@dataclass(frozen=True)
class Listing:
    """The cheapest offers of a card.

    Args:
        usd_per_hour: of one device, on demand; None where no cloud lists it.
        usd_per_hour_spot: of one that may be taken away.
        source: clouds and regions.
    """

    usd_per_hour: float | None
    usd_per_hour_spot: float | None
    source: str


def cheapest(accelerator: str, folder: Path | None = None) -> Listing | None:
    """The cheapest price of one device over all clouds and regions of the catalog; None where it lists none.

    Args:
        accelerator: SkyPilot's name of it; a TPU's without its number of chips.
        folder: of the catalogs; default: the user's.
    """
    folder = folder if folder is not None else Path.home() / ".sky" / "catalogs"
    on_demand: list[tuple[float, str]] = []
    spot: list[tuple[float, str]] = []
    for file in sorted(folder.glob("v*/*/vms.csv")):
        for row in _rows(file):
            number = _devices(row, accelerator)
            if number is None:
                continue
            where = f"{file.parent.name} {row.get('Region', '')}".strip()
            for column, found in (("Price", on_demand), ("SpotPrice", spot)):
                price = _number(row.get(column))
                if price:
                    found.append((price / number, where))
    if not on_demand and not spot:
        return None
    best, best_spot = min(on_demand, default=None), min(spot, default=None)
    said = [f"{name}: {found[1]}" for name, found in (("on demand", best), ("spot", best_spot)) if found is not None]
    return Listing(
        best[0] if best is not None else None,
        best_spot[0] if best_spot is not None else None,
        f"SkyPilot catalog, {', '.join(said)}",
    )


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # a catalog is a convenience: one that cannot be read is as good as none


def _devices(row: dict[str, str], accelerator: str) -> float | None:
    """How many devices a row's machine has, where it is of this kind."""
    name, count = row.get("AcceleratorName") or "", _number(row.get("AcceleratorCount"))
    if name.lower() == accelerator.lower() and count:
        # a row without a machine is the price of a card that is put into one, which costs as well
        return count if row.get("InstanceType") else None
    slice_ = re.fullmatch(rf"{re.escape(accelerator)}-(\d+)", name, re.IGNORECASE) if "tpu" in accelerator else None
    if slice_ is None:
        return None
    # of these generations a slice's name counts cores, two a chip
    return float(slice_[1]) / (2 if accelerator.lower() in _BY_CORES else 1)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
