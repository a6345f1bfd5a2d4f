"""The run's folder: claimed by one run, resumed or replaced only when asked, with room for what will be written."""

import os
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import yaml

from jaxlean import config as settings
from jaxlean.config import DistillSection, DistributedSection, RunConfig
from jaxlean.errors import RunError
from jaxlean.hub.adapter_file import SETTINGS, read_settings
from jaxlean.run.lock import FolderLock
from jaxlean.run.peers import Peers

_CONFIG = "config.yaml"
# What a search has in its place (`search/search.py`).
SEARCH = "search.yaml"
# Network file systems remember for a while that a file was not there.
_SEEN_SECONDS = 30.0
# What a curriculum sorts by, kept for a resumed run.
BASE_LOSSES = "base_losses.npz"
# What a run writes beside it; `--overwrite` removes these and nothing else.
_RESULTS = (
    *("metrics.jsonl", "summary.json", "checkpoints", "adapter", "model", "tensorboard", "wandb_id", BASE_LOSSES),
    *("snapshots", "evaluations"),
)


def claim(
    folder: Path, config: RunConfig, *, resume: bool, overwrite: bool, dry: bool = False, lock: FolderLock | None = None
) -> None:
    """Make the folder this run's and write `config.yaml` into it.

    Args:
        resume: go on with the run that is there, if any.
        overwrite: remove the run that is there, if any.
        dry: only check.
        lock: of the folder. It is taken as soon as the folder is there.

    Raises:
        RunError: it holds a run and neither was asked for, both were, the run that is there is another, another process
            writes it, it holds files of somebody else under the names of ours, what would be removed is needed, or it
            cannot be written.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    check_writable(folder)
    if not dry:
        make(folder)
    if lock is None:
        FolderLock(folder).check()
    elif folder.is_dir():
        lock.acquire()
    if os.path.lexists(folder / SEARCH):
        raise RunError("the output folder holds a search", where=folder, fix="output_dir=... names another folder")
    holds_run = (folder / _CONFIG).exists()
    results = [name for name in _RESULTS if os.path.lexists(folder / name)]
    if results and not holds_run:
        raise RunError(
            "the output folder holds what a run would write, but no run",
            where=folder,
            got=", ".join(results),
            wanted=f"{_CONFIG} beside them, which every run writes first",
            fix="output_dir=... names another folder",
        )
    if holds_run and not (resume or overwrite):
        raise RunError(
            "the output folder already holds a run",
            where=folder,
            fix="--resume goes on with it, --overwrite replaces it, output_dir=... leaves it alone",
        )
    if holds_run and resume:
        _check_same_run(folder, config)
    if holds_run and overwrite:
        _check_spares_inputs(folder, config)
    check_links(folder, [_CONFIG, "wandb", *(() if overwrite else _RESULTS)])
    if dry:
        return
    try:
        if overwrite:
            for name in results:
                remove(folder / name)
        # The last to change and never half there: a process killed at any moment leaves a folder that is some run's.
        partial = folder / f"{_CONFIG}.tmp"
        # Where this process stood among others is not of the run.
        plain = config.model_copy(update={"distributed": DistributedSection()})
        partial.write_text(settings.dump(plain), encoding="utf-8")
        os.replace(partial, folder / _CONFIG)
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def make(folder: Path) -> None:
    """Make the folder, and those above it. Raises: RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def check_shared(folder: Path, peers: Peers) -> None:
    """Fail now, not when the run is resumed: every process must see the folder that the first one writes.

    Raises:
        RunError: in a process that does not.
    """
    if peers.num == 1:
        return
    mark = folder / f".seen-{secrets.token_hex(8)}"
    if peers.is_first:
        mark.touch()
    mark, end = folder / peers.share(mark.name), time.monotonic() + _SEEN_SECONDS
    while not mark.exists():
        if time.monotonic() > end:
            raise RunError(
                "a process does not see the output folder that the first one made",
                where=f"process {peers.index}: {folder.absolute()}",
                fix="let output_dir=... name a folder on a file system that all share (NFS, a mounted bucket)",
            )
        time.sleep(0.2)
    peers.barrier()
    if peers.is_first:
        mark.unlink()


def check_space(folder: Path, state_bytes: int, keep: int) -> None:
    """Fail now, not after an hour: the checkpoints kept, one being written, and the result must fit on the disk.

    Raises:
        RunError: says how much is missing.
    """
    needed = state_bytes * (keep + 2)
    free = shutil.disk_usage(_existing(folder)).free
    if free < needed:
        raise RunError(
            "no disk space for the checkpoints",
            where=folder,
            got=f"{free / 1e6:,.0f} MB free",
            wanted=f"{needed / 1e6:,.0f} MB ({keep + 2} x {state_bytes / 1e6:,.1f} MB)",
            fix="free some, choose another output_dir, or lower train.save_total_limit",
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if os.path.lexists(place))


def check_writable(folder: Path, *, named: str = "output_dir") -> None:
    """Fail now: the folder, or where it is to be made, must be one that can be written.

    Args:
        folder: which.
        named: what the user calls it.

    Raises:
        RunError: it is not.
    """
    place = _existing(folder)
    if not place.is_dir():
        raise RunError(
            f"{named} is a file" if place == folder.absolute() else f"{named} lies under a file",
            where=place, wanted="a folder, or a place for one",
            fix="output_dir=... names another" if named == "output_dir" else "name another",
        )  # fmt: skip
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunError("the output folder cannot be written", where=place, got="no permission to write there")


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder in which links stand where files are to be written: they would land where those point.

    Args:
        folder: which; it may itself be a link, or not be there.
        names: of files and folders in it. What is written first under another name (`NAME.tmp`, `.NAME...`) counts too.

    Raises:
        RunError: names the first link.
    """
    names = set(names)
    if not folder.is_dir():
        return
    ours = (
        entry for entry in sorted(folder.iterdir())
        if entry.name in names or entry.name.startswith(".") or entry.name.endswith(".tmp")
    )  # fmt: skip
    for entry in ours:
        inner = entry.rglob("*") if entry.name in names and not entry.is_symlink() and entry.is_dir() else ()
        for path in (entry, *inner):
            if path.is_symlink():
                raise RunError(
                    "the output folder holds a link in the place of what is written there", where=path,
                    got=f"it points to {os.readlink(path)}",
                    fix="remove the link; output_dir=... itself may be a link, or name the other folder",
                )  # fmt: skip


def remove(path: Path) -> None:
    """A file, a folder with all in it, or a link and not what it names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def adapter_of(folder: Path) -> Path:
    """Where an adapter lies: in a folder of PEFT's it is that, in a finished run's output_dir it is `adapter`.

    Raises:
        ModelError: there is none.
        RunError: the run trained a whole model, or another process is writing it.
    """
    inside = folder / "adapter"
    if not (folder / SETTINGS).exists() and (inside / SETTINGS).exists():
        if (folder / _CONFIG).exists():
            FolderLock(folder).check()  # an adapter that is about to be replaced is none to count on
        return inside
    if not (folder / SETTINGS).exists() and (folder / "model").is_dir() and (folder / _CONFIG).exists():
        raise RunError("the run trained a whole model, and no adapter", where=folder, fix="name a run with lora:")
    read_settings(folder)
    return folder


def _check_spares_inputs(folder: Path, config: RunConfig) -> None:
    """`--overwrite` must not remove what the new run, or whoever loads its adapter, reads."""
    model, data = config.model, config.data
    used = [
        ("model.path", model.path),
        ("model.tokenizer", model.tokenizer),
        ("model.chat_template", model.chat_template),
        ("model.new_tokens_vectors", model.new_tokens_vectors),
        ("cost.hardware", config.cost.hardware),
        ("lora.init_from", None if config.lora is None else config.lora.init_from),
        *(() if config.distill is None else _of_teacher(config.distill)),
        *(("data.train", source.path) for source in data.train or []),
        *(("data.eval", source.path) for source in data.eval or []),
    ]
    removed = [(folder / name).resolve() for name in _RESULTS]
    for key, path in used:
        if path is not None and any(Path(path).resolve().is_relative_to(place) for place in removed):
            raise RunError(
                f"--overwrite would remove what {key} names", where=path, fix="output_dir=... names another folder"
            )


def _of_teacher(distill: DistillSection) -> tuple[tuple[str, str | None], ...]:
    teacher = distill.teacher
    return (
        ("distill.teacher.path", teacher.path), ("distill.teacher.adapter", teacher.adapter),
        ("distill.cache", distill.cache),
    )  # fmt: skip


def _check_same_run(folder: Path, config: RunConfig) -> None:
    """A resumed run must be the same run: what may change is how it reports and how often it saves.

    The learning rate may change too, so that a run whose loss broke can go on more gently from its last checkpoint.
    """
    file = folder / _CONFIG
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError("the config of the run cannot be read", where=file, got=error) from error
    if not isinstance(values, dict):
        raise RunError(
            "the config of the run cannot be read", where=file, got=values, wanted="what the run wrote there"
        )
    before = settings.build(values, where=file)
    # On other devices it is the same run while a step takes the same rows, which the place in the data checks.
    free = {"output_dir", "report", "search", "cost", "compilation_cache", "mesh", "distributed"}
    free_in_train = {"logging_steps", "save_steps", "save_total_limit", "learning_rate"}
    free_in_train |= {"per_device_train_batch_size", "gradient_accumulation_steps", "remat", "memory_budget"}
    free_in_eval = {"mode", "evaluators", "snapshots", "wait_seconds", "nice", "stopping"}
    old, new = before.model_dump(), config.model_dump()
    for section in old:
        if section in free or old[section] == new[section]:
            continue
        if not isinstance(old[section], dict) or not isinstance(new[section], dict):
            raise changed(folder, section, old[section], new[section])
        for key in old[section]:
            allowed = key in {"train": free_in_train, "eval": free_in_eval}.get(section, ())
            if old[section][key] != new[section][key] and not allowed:
                raise changed(folder, f"{section}.{key}", old[section][key], new[section][key])


def changed(folder: Path, key: str, old: object, new: object) -> RunError:
    """What to raise where `--resume` comes with another setting."""
    return RunError(
        f"--resume with another {key}",
        where=folder,
        got=new,
        wanted=f"{old}, as the run was started",
        fix="use the same config, or start anew with --overwrite or another output_dir",
    )
