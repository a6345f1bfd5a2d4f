"""The run's folder: claimed by one run, resumed or replaced only when asked, with room for what will be written."""

import shutil
from pathlib import Path

import yaml

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.errors import RunError

_CONFIG = "config.yaml"
# What a run writes; `--overwrite` removes these and nothing else.
_OURS = (_CONFIG, "metrics.jsonl", "summary.json", "checkpoints", "adapter", "model", "tensorboard", "wandb_id")


def claim(folder: Path, config: RunConfig, *, resume: bool, overwrite: bool, dry: bool = False) -> None:
    """Make the folder this run's and write `config.yaml` into it.

    Args:
        resume: go on with the run that is there, if any.
        overwrite: remove the run that is there, if any.
        dry: only check.

    Raises:
        RunError: it holds a run and neither was asked for, both were, or it cannot be written.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other")
    holds_run = (folder / _CONFIG).exists()
    if holds_run and not (resume or overwrite):
        raise RunError(
            "the output folder already holds a run",
            where=folder,
            fix="--resume goes on with it, --overwrite replaces it, output_dir=... leaves it alone",
        )
    if folder.exists() and not folder.is_dir():
        raise RunError("output_dir is a file", where=folder)
    if holds_run and resume:
        _check_same_run(folder, config)
    if dry:
        return
    if overwrite:
        for name in _OURS:
            old = folder / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CONFIG).write_text(settings.dump(config), encoding="utf-8")
    except OSError as error:
        raise RunError("the output folder cannot be written", where=folder, got=error) from error


def check_space(folder: Path, state_bytes: int, keep: int) -> None:
    """Fail now, not after an hour: the checkpoints kept, one being written, and the result must fit on the disk.

    Raises:
        RunError: says how much is missing.
    """
    needed = state_bytes * (keep + 2)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            "no disk space for the checkpoints",
            where=folder,
            got=f"{free / 1e6:,.0f} MB free",
            wanted=f"{needed / 1e6:,.0f} MB ({keep + 2} x {state_bytes / 1e6:,.1f} MB)",
            fix="free some, choose another output_dir, or lower train.save_total_limit",
        )


def _check_same_run(folder: Path, config: RunConfig) -> None:
    """A resumed run must be the same run: what may change is how it reports and how often it saves."""
    before = settings.build(yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8")), where=folder / _CONFIG)
    free = {"output_dir", "report", "cost"}
    free_in_train = {"logging_steps", "save_steps", "save_total_limit", "learning_rate"}
    old, new = before.model_dump(), config.model_dump()
    for section in old:
        if section in free or old[section] == new[section]:
            continue
        if not isinstance(old[section], dict) or not isinstance(new[section], dict):
            raise _changed(folder, section, old[section], new[section])
        for key in old[section]:
            allowed = section == "train" and key in free_in_train
            if old[section][key] != new[section][key] and not allowed:
                raise _changed(folder, f"{section}.{key}", old[section][key], new[section][key])


def _changed(folder: Path, key: str, old: object, new: object) -> RunError:
    return RunError(
        f"--resume with another {key}",
        where=folder,
        got=new,
        wanted=f"{old}, as the run was started",
        fix="use the same config, or start anew with --overwrite or another output_dir",
    )
