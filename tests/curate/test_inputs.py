from pathlib import Path

import datasets

from jaxlean.config import build
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.inputs import rows_read, stamps


def test_every_file_that_is_read_has_a_stamp(tmp_path: Path) -> None:
    for name in ("a.jsonl", "held.jsonl", "target.jsonl", "base/config.json", "adapter/x.bin", "base/.cache/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    adapter = {"adapter": str(tmp_path / "adapter")}
    steps = [{"importance": {"target": str(tmp_path / "target.jsonl")}}, {"loss": adapter}, {"ifd": adapter}]
    config = build(
        {
            "data": {"train": str(tmp_path / "a.jsonl"), "eval": str(tmp_path / "held.jsonl")},
            "model": {"path": str(tmp_path / "base"), "tokenizer": "some/id"}, "curate": {"steps": steps},
        }
    )  # fmt: skip
    found = stamps(config, Corpus(config), Corpus(config, "eval"))
    assert {Path(name).relative_to(tmp_path).as_posix() for name in found} == {
        "a.jsonl", "held.jsonl", "target.jsonl", "base/config.json", "adapter/x.bin",
    }  # fmt: skip
    assert all(size == 14 for size, _ in found.values())
    assert [key for key, _ in rows_read(config)] == ["data.train", "data.eval", "importance.target"]


def test_each_split_of_a_dataset_has_a_stamp(tmp_path: Path) -> None:
    found = []
    for text in ("b", "c"):
        both = {
            "train": datasets.Dataset.from_dict({"text": ["a", text]}),
            "test": datasets.Dataset.from_dict({"text": ["x"]}),
        }
        datasets.DatasetDict(both).save_to_disk(str(tmp_path / "both"))
        source = {"path": str(tmp_path / "both")}
        config = build({"data": {"train": [source], "eval": [source | {"split": "test"}]}})
        found.append(stamps(config, Corpus(config), Corpus(config, "eval")))
    assert len(found[0]) == 2
    assert found[0] != found[1]


def test_what_datasets_holds_has_its_fingerprint(tmp_path: Path) -> None:
    found = []
    for texts in (["a", "b"], ["a", "c"]):
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / texts[1]))
        config = build({"data": {"train": str(tmp_path / texts[1])}})
        for _ in range(2):
            ((count, fingerprint),) = stamps(config, Corpus(config), None).values()
            assert count == 2
            found.append(fingerprint)
    assert found[0] == found[1] != found[2] == found[3]
