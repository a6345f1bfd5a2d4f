"""What a run is made of beside its rows: kept in its checkpoints, so that it is not gone on with on something else.

The training rows are in the data's own state (`data.batches`). Here are the base, the held-out rows, since qualities
before and after are of the same ones or mean nothing, and the teacher.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxlean import fingerprint
from jaxlean.config import RunConfig
from jaxlean.errors import RunError

if TYPE_CHECKING:
    from jaxlean.data.tokenize import Ragged
    from jaxlean.hub.load import Model


def provenance(config: RunConfig, model: "Model", held_out: "Ragged | None", teacher: Path | None) -> dict[str, str]:
    """Setting -> what tells that which it names from others.

    Args:
        config: of the run.
        model: its base.
        held_out: the rows that it is measured on.
        teacher: folder of its teacher's files.

    Raises:
        RunError: files have gone since they were read.
    """
    found = {}
    folders = {"model.path": model.folder, "distill.teacher.path": teacher}
    if config.distill is not None and config.distill.teacher.adapter is not None:
        folders["distill.teacher.adapter"] = Path(config.distill.teacher.adapter)
    if config.lora is not None and config.lora.init_from is not None:
        folders["lora.init_from"] = Path(config.lora.init_from)
    for key, folder in folders.items():
        if folder is not None:
            try:
                found[key] = fingerprint.of_model(folder)
            except OSError as error:
                raise RunError(f"the files of {key} cannot be read", where=folder, got=error) from error
    if held_out is not None:
        found["data.eval"] = f"{len(held_out)} rows ({held_out.checksum:08x})"
    return found


def check_same(before: dict[str, str], now: dict[str, str], folder: Path) -> None:
    """What a checkpoint tells of is what there is now; what it does not tell of is not compared.

    Raises:
        RunError: names the first that has changed.
    """
    what = {
        "data.eval": "the held-out rows have", "model.path": "the base model has",
        "lora.init_from": "the adapter that it started from has",
    }  # fmt: skip
    for key, known in before.items():
        if key in now and now[key] != known:
            raise RunError(
                f"{what.get(key, 'the teacher has')} changed since the checkpoint", where=folder,
                got=f"{key}: {now[key]}", wanted=f"{known}, as when the run was started",
                fix=f"put back what {key} named then, or start anew with --overwrite or another output_dir",
            )  # fmt: skip
