"""What the hardware costs, what a run may cost, and where its account is kept."""

import re
from typing import Literal

from pydantic import Field, field_validator

from jaxlean.config.section import Fraction, Section, named

# "greenest within 12h", "cheapest within 90 min"
START = re.compile(r"(greenest|cheapest)\s+within\s+(\d+(?:\.\d+)?)\s*(h|hours?|min|minutes?|d|days?)")


class CostSection(Section):
    """What the hardware costs, and what the run may cost."""

    usd_per_hour: float | None = Field(
        None, ge=0, description="Price of all devices of the run together; wins over the table."
    )
    pricing: Literal["on_demand", "spot", "electricity"] = Field(
        "on_demand",
        description="Which price counts: the table's of a rented device, of one that may be taken away, or the "
        "electricity of your own (cost.usd_per_kwh).",
    )
    hardware: str | None = named(
        None, "A YAML table of prices and hardware that goes before configs/hardware.yaml.", "prices"
    )
    usd_per_kwh: float | None = Field(None, ge=0, description="Price of electricity, for pricing: electricity.")
    region: str | None = Field(
        None,
        description="Where the machines stand, for gCO2e: DE, US-CA, us-central1 ... (configs/regions.yaml).",
    )
    regions: str | None = Field(
        None, description="A YAML table of what regions emit that goes before configs/regions.yaml."
    )
    gco2e_per_kwh: float | None = Field(None, ge=0, description="What a kWh emits there; wins over the table.")
    pue: float = Field(
        1.0, ge=1, description="Power usage effectiveness: energy of the whole data centre over that of its machines."
    )
    max_usd: float | None = Field(
        None, gt=0, description="The run stops before it costs more, saved and to be resumed (status: budget)."
    )
    max_kwh: float | None = Field(None, gt=0, description="... before it takes more energy.")
    max_hours: float | None = Field(None, gt=0, description="... before it takes longer.")
    alert_at: list[Fraction] = Field([0.5, 0.8], description="Shares of a limit at which a line says so.")
    webhook: str | None = Field(
        None,
        description="URL that alerts are sent to as JSON; what is secret in it stays in the environment: "
        "https://hooks.example/${HOOK_TOKEN}.",
    )
    start: str | None = Field(
        None,
        description="Wait for the best time to begin: greenest within 12h, cheapest within 12h, by cost.forecast.",
    )
    start_hours: float | None = Field(
        None, gt=0, description="How long the job takes, for cost.start; default: as it is planned for this machine."
    )
    forecast: str | None = Field(
        None,
        description="File or URL with what a kWh will emit or cost, hour by hour: CSV (time, gco2e_per_kwh, "
        "usd_per_kwh, usd_per_hour), or JSON of Electricity Maps or WattTime.",
    )
    project: str | None = Field(None, description="Who pays, in the ledger; default: the folder that it runs in.")
    tags: list[str] = Field(default_factory=list, description="What the ledger can sum by as well.")
    ledger: bool | str = Field(
        True, description="Where runs are entered when they end: a SQLite file; true: the user's own; false: nowhere."
    )

    @field_validator("start")
    @classmethod
    def _says_when(cls, value: str | None) -> str | None:
        if value is not None and START.fullmatch(value.strip()) is None:
            raise ValueError("cost.start is 'greenest within 12h' or 'cheapest within 12h'")
        return value

    @field_validator("tags", mode="before")
    @classmethod
    def _one_tag(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value
