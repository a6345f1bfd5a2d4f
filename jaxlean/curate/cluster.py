"""The same shards as Ray Data tasks, for corpora that one machine would read for days.

What is decided about all rows together (which hashes are the same, which of two near rows stays) is decided here, from
arrays of a few bytes a row; only what is done row by row is spread. So the same rows come out as on one machine.
Every node reads the sources by the paths in the config and, in the output folder, which has to lie where all see it,
what `leakage` looks up. None writes: results come back and are kept here.
"""

import io
import logging
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.config.read import told
from jaxlean.curate.corpus import Corpus, Which
from jaxlean.curate.work import Arrays, Function
from jaxlean.errors import ConfigError, UserError


class RayWorkers:
    """Ray actors that have the data open: `Workers` for a cluster (`RAY_ADDRESS`), or for this machine without one."""

    def __init__(self, config: RunConfig) -> None:
        """Join or start Ray.

        Raises:
            ConfigError: Ray is not installed.
        """
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ConfigError("curate.engine: ray needs Ray", got=error, fix="pip install 'jaxlean[ray]'") from None
        self._started = not ray.is_initialized()
        if self._started:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            try:
                ray.init(address="auto", **quiet)
            except ConnectionError:  # there is no cluster
                ray.init(num_cpus=config.curate.processes, include_dashboard=False, **quiet)
        self.num = config.curate.processes or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._values = told(config)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        if self._started:
            ray.shutdown()

    def map(
        self, function: Function, which: Which, shards: Iterable[np.ndarray], more: tuple[Any, ...]
    ) -> Iterator[Arrays]:
        """`function(corpus, numbers, *more)` for each shard's numbers, in order.

        Raises:
            UserError: as the function.
        """
        import ray.data

        rows = [{"numbers": _packed({"numbers": numbers})} for numbers in shards]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Shard,
            fn_constructor_args=(self._values, which, function, more),
            compute=ray.data.ActorPoolStrategy(size=min(self.num, len(rows))),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield _unpacked(row["arrays"])


class _Shard:
    """An actor: one corpus, many shards."""

    def __init__(self, values: dict[str, Any], which: Which, function: Function, more: tuple[Any, ...]) -> None:
        self._corpus, self._function, self._more = Corpus(settings.build(values), which), function, more

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        numbers = _unpacked(row["numbers"])["numbers"]
        try:
            return {"arrays": _packed(self._function(self._corpus, numbers, *self._more)), "error": b""}
        except UserError as error:  # raised, it would come back as Ray's, with two tracebacks
            return {"arrays": b"", "error": pickle.dumps(error)}


def _packed(arrays: Arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpacked(packed: bytes) -> Arrays:
    with np.load(io.BytesIO(packed)) as arrays:
        return dict(arrays)
