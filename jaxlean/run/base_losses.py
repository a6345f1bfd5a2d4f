"""The base's loss of every row that trains, measured once a run: what `data.curriculum.difficulty: loss` sorts by.

It is kept in the run's folder, so that a resumed run sorts by the very same numbers, and does not wait for them again.
"""

import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxlean.config import RunConfig
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import RunError
from jaxlean.hub.load import Model
from jaxlean.run.folder import BASE_LOSSES
from jaxlean.run.peers import Peers
from jaxlean.run.row_losses import row_losses


class BaseLosses:
    """Called with the base and the rows, it measures their losses, or reads what a resumed run has measured.

    Args:
        config: as of `row_losses`; its `output_dir` is where they are kept.
        mesh: that the base lies on.
        peers: all of which call it together.
        resume: read what is there.
        say: prints a line.
    """

    def __init__(
        self,
        config: RunConfig,
        mesh: jax.sharding.Mesh,
        peers: Peers,
        *,
        resume: bool,
        say: Callable[[str], None],
    ):
        self._config, self._mesh, self._peers = config, mesh, peers
        self._resume, self._say = resume, say
        self._measured: tuple[np.ndarray, int] | None = None

    def __call__(self, model: Model, examples: Ragged) -> np.ndarray:
        """float64 [rows], the mean loss of each row's learned tokens."""
        content = zlib.crc32(examples.input_ids.data, zlib.crc32(examples.loss_mask.data))
        file = Path(self._config.output_dir) / BASE_LOSSES
        # the first decides for all: to measure them takes all processes together
        known = _read(file, content) if self._resume and self._peers.is_first else None
        if self._peers.share(known is not None):
            known = known if known is not None else _read(file, content)
            if known is None:
                raise RunError("a process does not see the losses that the first one reads", where=file)
            return known
        start = time.perf_counter()
        self._peers.barrier()
        losses = row_losses(self._config, model, examples, self._mesh)
        self._measured = losses, content
        self._say(
            f"curriculum: the base's loss of {len(losses):,} rows in {time.perf_counter() - start:.1f} s, "
            f"{np.quantile(losses, 0.05):.3f} (5 %) to {np.quantile(losses, 0.95):.3f} (95 %), mean {losses.mean():.3f}"
        )
        return losses

    def keep(self) -> None:
        """Write what was measured, if anything was, into the folder, which is this run's by now."""
        if self._measured is None or not self._peers.is_first:
            return
        losses, content = self._measured
        file = Path(self._config.output_dir) / BASE_LOSSES
        partial = file.with_name(f".{BASE_LOSSES}.tmp.npz")
        try:
            np.savez(partial, losses=losses, content=content)
            os.replace(partial, file)
        except OSError as error:
            raise RunError("the losses of the rows cannot be written", where=file, got=error) from error


def _read(file: Path, content: int) -> np.ndarray | None:
    """The losses in a file, if they are of these rows."""
    try:
        # opened here, since numpy leaves a file open in which it finds no archive
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return found["losses"] if int(found["content"]) == content else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, or cut short: they are measured again
