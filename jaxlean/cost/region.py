"""What a kilowatt-hour emits: `configs/regions.yaml`, which the user may edit.

An entry of the user's own table (`cost.regions`) goes before the one that comes with jaxlean. Where nothing is known of
a region, nothing is said: a world's average would be off by ten.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxlean.config import CostSection
from jaxlean.errors import ConfigError, did_you_mean


class Table(BaseModel):
    """As the file holds it; its head says what each part means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regions: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)] | str]
    names: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class Intensity:
    """What a kWh emits.

    Args:
        gco2e_per_kwh: None where it is not known.
        source: where the number is from, or why there is none.
    """

    gco2e_per_kwh: float | None
    source: str

    def gco2e(self, kwh: float | None) -> float | None:
        """Grams of CO2 equivalent; None where energy or region is not known."""
        return None if kwh is None or self.gco2e_per_kwh is None else kwh * self.gco2e_per_kwh


def intensity(cost: CostSection) -> Intensity:
    """Of the config's region.

    Raises:
        ConfigError: the region is in no table, or the user's table cannot be read.
    """
    if cost.gco2e_per_kwh is not None:
        return Intensity(cost.gco2e_per_kwh, "cost.gco2e_per_kwh")
    if cost.region is None:
        return Intensity(None, "no region: set cost.region or cost.gco2e_per_kwh")
    tables = [(file, _read(str(file), own)) for file, own in _files(cost.regions)]
    code = cost.region
    for _ in range(2):  # a cloud's region, and the country in which it stands
        found = next(((file, entry) for file, table in tables if (entry := _entry(table, code)) is not None), None)
        if found is None:
            break
        file, entry = found
        if not isinstance(entry, str):
            where = code if code == cost.region else f"{cost.region} in {code}"
            return Intensity(entry, f"{where}: {entry:g} gCO2e/kWh ({Path(file).name})")
        code = entry
    known = [name for _, table in tables for name in (*table.regions, *table.names)]
    raise ConfigError(
        "nothing is known of what this region emits",
        where="cost.region",
        got=cost.region,
        fix=f"{_close(cost.region, known)}; or set cost.gco2e_per_kwh",
    )


def _close(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else "configs/regions.yaml has 360: DE, US-CA, us-central1, eu-west-1"


def _entry(table: Table, name: str) -> float | str | None:
    wanted = name.casefold()
    codes = {code.casefold(): entry for code, entry in table.regions.items()}
    names = {known.casefold(): code for known, code in table.names.items()}
    return codes.get(wanted, names.get(wanted))


def _files(own: str | None) -> list[tuple[Path | str, bool]]:
    return [*([(own, False)] if own is not None else []), (built_in(), True)]


def built_in() -> Path:
    """The table that comes with jaxlean: inside of the installed package, or in the source tree's `configs`."""
    packaged = Path(str(resources.files("jaxlean.cost").joinpath("regions.yaml")))
    return packaged if packaged.exists() else Path(__file__).parents[2] / "configs" / "regions.yaml"


@lru_cache
def _read(file: str, own: bool) -> Table:
    where = "configs/regions.yaml" if own else file
    try:
        found: Any = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return Table.model_validate(found)
    except FileNotFoundError:
        raise ConfigError("no such table of regions", where=f"cost.regions={where}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the table of regions cannot be read", where=where, got=error) from None
    except yaml.YAMLError as error:
        raise ConfigError("the table of regions is not valid YAML", where=where, got=error) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"table of regions, {key}: {first['msg']}", where=where, fix="see configs/regions.yaml"
        ) from None
