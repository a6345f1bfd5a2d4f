"""A run is one `RunConfig`: every setting once (`sections`), read from YAML with overrides (`read`)."""

from jaxlean.config.compression import CalibrationSection, QuantizeSection
from jaxlean.config.cost import CostSection
from jaxlean.config.curation import CurateSection, StepSection
from jaxlean.config.curriculum import CurriculumSection
from jaxlean.config.data import DataSection, SourceSection
from jaxlean.config.distill import DistillSection, MatchSection, StudentSection, TeacherSection
from jaxlean.config.evaluation import EvalSection, StoppingSection
from jaxlean.config.model import LoraSection, ModelSection
from jaxlean.config.pruning import GradualSection, PruneSection
from jaxlean.config.read import build, dump, load, of_values, with_values
from jaxlean.config.search import DistributionSection, SearchSection
from jaxlean.config.section import Section
from jaxlean.config.sections import (
    DistributedSection,
    MeshSection,
    ReportSection,
    RunConfig,
    TrainSection,
)

__all__ = [
    "build",
    "dump",
    "load",
    "of_values",
    "with_values",
    "CalibrationSection",
    "CostSection",
    "CurateSection",
    "CurriculumSection",
    "DataSection",
    "DistillSection",
    "DistributedSection",
    "DistributionSection",
    "EvalSection",
    "GradualSection",
    "LoraSection",
    "MatchSection",
    "MeshSection",
    "ModelSection",
    "PruneSection",
    "QuantizeSection",
    "ReportSection",
    "RunConfig",
    "SearchSection",
    "Section",
    "SourceSection",
    "StepSection",
    "StoppingSection",
    "StudentSection",
    "TeacherSection",
    "TrainSection",
]
