"""A run is one `RunConfig`: every setting once (`sections`), read from YAML with overrides (`read`)."""

from jaxlean.config.read import build, dump, load
from jaxlean.config.sections import (
    CostSection,
    DataSection,
    DistributedSection,
    EvalSection,
    LoraSection,
    MeshSection,
    ModelSection,
    ReportSection,
    RunConfig,
    Section,
    SourceSection,
    TrainSection,
)

__all__ = [
    "build",
    "dump",
    "load",
    "CostSection",
    "DataSection",
    "DistributedSection",
    "EvalSection",
    "LoraSection",
    "MeshSection",
    "ModelSection",
    "ReportSection",
    "RunConfig",
    "Section",
    "SourceSection",
    "TrainSection",
]
