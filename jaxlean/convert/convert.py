"""Another project's config -> ours, top to bottom: read, detect, each key, defaults, what cannot be, check."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxlean.config import RunConfig, build
from jaxlean.convert.detect import by_name, detect
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Line
from jaxlean.convert.source import Source, read
from jaxlean.errors import ConfigError

_NO_EVALUATION = "needs scores while the run goes; nearest: eval.eval_steps: STEPS with it"
_NO_ROWS = "needs held-out rows; nearest: data.eval: FILE, or data.eval_fraction: 0.05, with it"


@dataclass
class Conversion:
    """A converted config, and what became of each key.

    Attributes:
        format: whose the file is.
        by: the keys that told it; none where the user said it.
        file: that was read.
        lines: of each key in the file, in its order.
        written: of what is not in the file, where jaxlean's default is another: name of the key there, or nothing.
        settings: `section.key` of ours -> value.
        config: what they make.
    """

    format: Format
    by: tuple[str, ...]
    file: Path
    lines: list[Line] = field(default_factory=list)
    written: list[Line] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    config: RunConfig = field(default_factory=RunConfig)
    empty: tuple[str, ...] = ()


def convert(file: Path, *, of: str | None = None) -> Conversion:
    """Make a config of ours of another project's.

    Args:
        file: YAML or JSON.
        of: the project's name (`axolotl`, `llama-factory`, `trl`, `unsloth`); default: told by the keys.

    Raises:
        ConfigError: the file cannot be read, is nobody's, is of a job that jaxlean does not do, contradicts itself, or
            holds a value that cannot be.
    """
    # ---- read
    values = read(file)
    if of is None:
        guess = detect(file, values)
        found = Conversion(guess.format, guess.by, file)
    else:
        found = Conversion(by_name(of), (), file)
    source = found.format.read(file, values)
    found.empty = source.empty

    # ---- each key
    found.lines = found.format.lines(source)
    said: dict[str, Line] = {}
    for line in found.lines:
        for key, value in line.outcome.settings.items():
            if key in said and found.settings[key] != value:
                raise ConfigError(
                    f"two keys say different things of {key}", where=file,
                    got=f"{said[key].key}: {found.settings[key]}, {line.key}: {value}", fix="keep one of them",
                )  # fmt: skip
            found.settings[key], said[key] = value, line

    # ---- what the file does not say
    found.written = _defaults(found, source)

    # ---- what does not go together
    _settle(found)

    # ---- what is checked as any config is
    if "output_dir" not in found.settings:
        found.settings["output_dir"] = f"runs/{file.stem}"
    found.config = _built(found, said)
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` -> value as a config has it, its sections in the order of `RunConfig`."""
    made: dict[str, Any] = {}
    order = list(RunConfig.model_fields)

    def place(item: tuple[int, str]) -> tuple[int, int]:
        number, key = item
        top = key.partition(".")[0]
        return order.index(top) if top in order else len(order), number

    for _, key in sorted(enumerate(settings), key=place):
        node = made
        *sections, name = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = settings[key]
    return made


def _defaults(found: Conversion, source: Source) -> list[Line]:
    """What the project takes where the file says nothing, and jaxlean does not: settings and the lines that say so."""
    lines = []
    plain = RunConfig()
    for row in found.format.rows:
        if row.default is UNSET or source.has(*row.keys):
            continue
        value = row.default(source) if callable(row.default) else row.default
        if value is not UNSET:
            lines.append(Line(row.keys[0], value, row.outcome(value, source)))
    lines += [Line("", None, outcome) for outcome in found.format.others(source)]
    kept = []
    for line in lines:
        new = {
            key: value
            for key, value in line.outcome.settings.items()
            if key not in found.settings and _default(plain, key) != value
        }
        found.settings |= new
        if new or line.outcome.check or line.outcome.kind == "missing" or (not line.key and not line.outcome.settings):
            kept.append(replace(line, outcome=replace(line.outcome, settings=new)))
    return kept


def _default(plain: RunConfig, key: str) -> Any:
    node: Any = plain
    for part in key.split("."):
        node = getattr(node, part, UNSET)
    return node


def _settle(found: Conversion) -> None:
    """Take back what cannot be beside the rest, and say so where it came from."""
    settings = found.settings
    if settings.get("lora", UNSET) is None:
        _take_back(found, [key for key in settings if key.startswith("lora.")], "idle", "all weights train: no adapter")
        why = "a quantized base is for adapters; nearest: train.optim: adamw_8bit"
        _take_back(found, ["model.quantization"], "missing", why)
    if "lora.init_from" in settings:
        own = [f"lora.{key}" for key in ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")]
        _take_back(found, own, "idle", "the adapter that it starts from has its own")
    while_it_runs = ["eval.load_best", "eval.stopping.patience", "eval.stopping.min_delta"]
    if "data.eval" not in settings and "data.eval_fraction" not in settings:
        _take_back(found, [*while_it_runs, "eval.eval_steps"], "missing", _NO_ROWS)
    elif "eval.eval_steps" not in settings:
        _take_back(found, while_it_runs, "missing", _NO_EVALUATION)
    if "eval.stopping.patience" not in settings:
        _take_back(found, ["eval.stopping.min_delta"], "missing", "of early_stopping_patience, which is not there")
    if settings.get("data.streaming") and "train.max_steps" not in settings:
        _take_back(found, ["data.streaming"], "missing", "a stream needs a number of steps; nearest: train.max_steps")
    if settings.get("data.streaming") is False:
        del settings["data.streaming"]


def _take_back(found: Conversion, keys: list[str], kind: Any, why: str) -> None:
    gone = {key for key in keys if key in found.settings}
    for key in gone:
        del found.settings[key]

    def told(line: Line) -> Line:
        mine = gone & line.outcome.settings.keys()
        if not mine:
            return line
        rest = {key: value for key, value in line.outcome.settings.items() if key not in mine}
        return replace(
            line, outcome=replace(line.outcome, settings=rest, note=why, kind=line.outcome.kind if rest else kind)
        )

    found.lines = [told(line) for line in found.lines]
    kept = ((line, told(line)) for line in found.written)
    found.written = [new for old, new in kept if new is old or new.outcome.settings]


def _built(found: Conversion, said: Mapping[str, Line]) -> RunConfig:
    """The config, or what of the file cannot be one, named as it is there."""
    try:
        return build(nested(found.settings))
    except ConfigError as error:
        what, _, rest = error.what.partition(": ")
        theirs = next((line.key for key, line in said.items() if what == key or what.startswith(f"{key}.")), None)
        named = f"{theirs} ({what})" if theirs is not None and theirs != what else what
        raise ConfigError(f"{named}: {rest}", where=found.file, got=error.got, fix=error.fix) from None
