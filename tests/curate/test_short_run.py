import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import RunConfig
from jaxlean.config.selection import ShortRunSection
from jaxlean.curate.short_run import short_run
from jaxlean.curate.work import Processes, Work
from jaxlean.errors import ConfigError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, bool]]:
    """What `finetune` was called with, which does nothing but say that it ended."""
    found: list[tuple[RunConfig, bool]] = []

    def finetune(config: RunConfig, *, resume: bool) -> None:
        found.append((config, resume))
        folder = Path(config.output_dir)
        folder.mkdir(exist_ok=True)
        status = "completed" if resume or len(found) > 1 else "preempted"
        (folder / "summary.json").write_text(json.dumps({"status": status}))

    monkeypatch.setattr("jaxlean.run.finetune.finetune", finetune)
    return found


def test_it_trains_on_a_share_of_the_rows_of_each_source(
    corpus_of: Any, tmp_path: Path, calls: list[tuple[RunConfig, bool]]
) -> None:
    def rows(name: str, num: int) -> list[dict[str, Any]]:
        return [{"prompt": f"{name} {i}", "completion": "yes", "tags": [i]} for i in range(num)]

    corpus = corpus_of(rows("one", 30), rows("other", 30), train={"max_steps": 7, "num_train_epochs": 3})
    alive = np.arange(60) % 3 != 0
    settings = ShortRunSection(fraction=0.25, num_train_epochs=0.5)

    def run() -> Path:
        with Processes(corpus.config) as workers:
            work = Work(tmp_path / "work" / "01-step", workers)
            work.folder.mkdir(parents=True, exist_ok=True)
            return short_run(corpus, alive, corpus.config, settings, work)

    assert run() == tmp_path / "work" / "01-step" / "run" / "adapter"
    config, resumed = calls[0]
    assert not resumed
    assert (config.train.num_train_epochs, config.train.max_steps) == (0.5, None)
    assert config.data.train is not None
    read = [json.loads(line) for source in config.data.train for line in Path(source.path).read_text().splitlines()]
    assert len(read) == 10
    whole = [*rows("one", 30), *rows("other", 30)]
    assert all(alive[whole.index(row)] for row in read)
    assert len({row["prompt"].split()[0] for row in read}) == 2

    run()  # what was cut short goes on
    assert [resumed for _, resumed in calls] == [False, True]
    assert calls[1][0] == config
    run()  # and what ended is not done again
    assert len(calls) == 2


def test_an_adapter_that_is_not_there(corpus_of: Any, tmp_path: Path) -> None:
    corpus = corpus_of([{"text": "a"}])
    with Processes(corpus.config) as workers, pytest.raises(ConfigError, match="the adapter's folder is not there"):
        short_run(corpus, np.ones(1, bool), corpus.config, ShortRunSection(adapter="no"), Work(tmp_path, workers))
