"""What a job reads: where it lies, and a stamp of each file, so that it goes on only with what it was started on."""

from collections.abc import Iterator
from pathlib import Path

from jaxlean.config import RunConfig, SourceSection
from jaxlean.config.selection import ImportanceSection, named_places
from jaxlean.curate.corpus import Corpus
from jaxlean.data.files import Rows
from jaxlean.data.source import open_rows

# Of a file [bytes, time it was changed in ns]; of what `datasets` holds [rows, fingerprint].
Stamps = dict[str, list[int | str]]


def rows_read(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(setting, path) of each source of rows."""
    for key, sources in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        for source in sources or []:
            yield key, source.path
    for target in targets(config):
        yield "importance.target", target


def targets(config: RunConfig) -> list[str]:
    """What `importance` compares with."""
    return [step.settings.target for step in config.curate.steps if isinstance(step.settings, ImportanceSection)]


def stamps(config: RunConfig, corpus: Corpus, held_out: Corpus | None) -> Stamps:
    """A stamp of every file that rows, models and adapters are read from.

    Args:
        config: of the job.
        corpus: its rows, opened.
        held_out: its held-out rows, opened.
    """
    opened = [*corpus.parts, *(held_out.parts if held_out else [])]
    opened += [open_rows(SourceSection(path=path)) for path in targets(config)]
    found: Stamps = {}
    for number, rows in enumerate(opened):
        found |= _of_rows(rows, number)
    for path in _models(config):
        for file in _files(Path(path), Path(config.output_dir)):
            found |= _of_file(file)
    return found


def _of_rows(rows: Rows, number: int) -> Stamps:
    if rows.fingerprint:  # several may have one name: splits of a dataset
        return {f"{rows.name} ({number + 1})": [len(rows), rows.fingerprint]}
    found: Stamps = {}
    for file in rows.files:
        found |= _of_file(file)
    return found


def _of_file(file: Path) -> Stamps:
    seen = file.stat()
    return {str(file): [seen.st_size, seen.st_mtime_ns]}


def _models(config: RunConfig) -> Iterator[str]:
    for path in (config.model.path, config.model.tokenizer):
        if path is not None:
            yield path
    for step in config.curate.steps:
        for section, name in named_places(step.settings):
            if name != "target":
                yield getattr(section, name)


def _files(path: Path, output: Path) -> list[Path]:
    """The files of a model's folder; of a hub id, which stands in the config, none."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not file.resolve().is_relative_to(output.resolve())
    ]
