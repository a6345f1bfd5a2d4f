import sys
from pathlib import Path

import pytest

from jaxlean.curate import work
from jaxlean.curate.curate import curate
from jaxlean.errors import ConfigError, DataError


def test_without_ray_the_extra_is_named(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError) as error:
        curate(job([{"text": "a"}], ["quality"], curate={"engine": "ray"}))
    assert "pip install 'jaxlean[ray]'" in str(error.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of which there are many
def test_two_workers_of_ray_come_to_the_same_rows(job, texts, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(work.Work.shards, "__kwdefaults__", {"name": "shard", "rows": 64, "here": False})
    rows = [{"text": f"{text} {'again ' * (i % 3)}"} for i, text in enumerate(texts * 40)]
    steps = ["exact_duplicates", "near_duplicates", "quality"]
    for engine, processes in (("processes", 1), ("ray", 2)):
        curate(job(rows, steps, curate={"engine": engine, "processes": processes}, output_dir=str(tmp_path / engine)))
    for name in ("train.parquet", "dropped.parquet"):
        assert Path(tmp_path, "ray", name).read_bytes() == Path(tmp_path, "processes", name).read_bytes()
    rows[100] = {"body": "no text"}
    with pytest.raises(DataError, match=r"the column 'text' is missing\n  where:  .*rows\.jsonl:101"):
        curate(job(rows, steps, curate={"engine": "ray", "processes": 2}, output_dir=str(tmp_path / "error")))
