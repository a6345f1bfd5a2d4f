"""What is searched: settings of the config by path, and the distribution that each is drawn from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxlean.config import DistributionSection, RunConfig, with_values
from jaxlean.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# What all trials are measured by, where they write, and the search itself: another value of it is another search.
_FIXED = (
    "search", "output_dir", "eval", "data.eval", "data.eval_fraction", "report", "cost", "distributed", "mesh",
    "curate", "calibration", "quantize", "prune", "compilation_cache",
)  # fmt: skip


def distributions(space: Mapping[str, DistributionSection]) -> "dict[str, BaseDistribution]":
    """Path -> Optuna's distribution. A choice that is no text, number or switch stands in the study as its number."""
    return {path: _distribution(section) for path, section in space.items()}


def _distribution(section: DistributionSection) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if section.choices is not None:
        return CategoricalDistribution([_named(choice, i) for i, choice in enumerate(section.choices)])
    if section.log is not None:
        return FloatDistribution(*section.log, log=True)
    if section.uniform is not None:
        return FloatDistribution(*section.uniform, step=section.step)
    if section.log_int is not None:
        return IntDistribution(*section.log_int, log=True)
    assert section.int_ is not None
    return IntDistribution(*section.int_, step=int(section.step or 1))


def _named(choice: Any, number: int) -> Any:
    """What a study can store of a choice: of lists and sections their number and text."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else f"{number}: {choice}"


def values(space: Mapping[str, DistributionSection], params: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value in the config, of what a trial drew."""

    def value(path: str, drawn: Any) -> Any:
        choices = space[path].choices
        if choices is None:
            return drawn
        return next(choice for i, choice in enumerate(choices) if _named(choice, i) == drawn)

    return {path: value(path, drawn) for path, drawn in params.items()}


def configured(config: RunConfig, params: Mapping[str, Any]) -> RunConfig:
    """The config of a trial.

    Raises:
        ConfigError: the values do not go together.
    """
    return with_values(config, values(config.search.space, params), where="search.space")


def check(config: RunConfig) -> None:
    """Find now what could only fail later: every end and every choice of the space makes a config.

    Raises:
        ConfigError: an empty space, a setting that is not there or that all trials must share, a value that is none.
    """
    space = config.search.space
    if not space:
        raise ConfigError(
            "nothing is searched", where="search.space",
            wanted="settings by path, each with what it is drawn from",
            fix="search.space.train.learning_rate={log: [1.0e-5, 1.0e-2]}, or a `search:` section in the config",
        )  # fmt: skip
    for path, section in space.items():
        fixed = next((name for name in _FIXED if path == name or path.startswith(name + ".")), None)
        if fixed is not None:
            raise ConfigError(f"search.space: {fixed} is the same for all trials", got=path, fix="leave it out")
        if path == "seed" and config.data.eval_fraction and not config.data.eval:
            raise ConfigError(
                "search.space: with another seed data.eval_fraction holds out other rows", got=path,
                fix="data.eval=FILE, or leave out the seed",
            )  # fmt: skip
        ends = next(b for b in (section.uniform, section.log, section.int_, section.log_int, section.choices) if b)
        for value in ends:
            with_values(config, {path: value}, where=f"search.space.{path}")
