"""The quickstart's task: the same bytes from the same seed, and nothing of the held-out rows in the training rows."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "configs" / "quickstart"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


task = load("make_task")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return {name: read(FOLDER / f"{name}.jsonl") for name in ("train", "heldout")}


def answers(rows: list[dict]) -> list[dict]:
    return [json.loads(row["completion"]) for row in rows]


def values(rows: list[dict]) -> set[str]:
    return {value.lower() for answer in answers(rows) for value in answer["slots"].values()}


def test_the_committed_files_are_what_the_script_writes(tmp_path):
    task.main(["--out", str(tmp_path)])
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name}: run make_task.py again"


def test_another_seed_gives_other_rows_and_more_training_rows_the_same_heldout_rows(tmp_path):
    heldout = []
    for seed, train in ((0, 50), (0, 100), (1, 50)):
        task.main(["--seed", str(seed), "--train", str(train), "--heldout", "50", "--out", str(tmp_path)])
        heldout.append((tmp_path / "heldout.jsonl").read_bytes())
        assert len(read(tmp_path / "train.jsonl")) == train
    assert heldout[0] == heldout[1] != heldout[2]


def shared_wordings(train: list[dict], heldout: list[dict]) -> list[str]:
    """The held-out messages that occur in training when their values are taken out."""
    trained = {task.skeleton(row) for row in train}
    return [row["prompt"] for row in heldout if task.skeleton(row) in trained]


def shared_values(train: list[dict], heldout: list[dict]) -> list[str]:
    """The held-out slot values that stand, as whole words, anywhere in a training message."""
    messages = "\n".join(row["prompt"].lower() for row in train)
    return [value for value in values(heldout) if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", messages)]


def test_no_heldout_wording_occurs_in_training(rows):
    assert not shared_wordings(rows["train"], rows["heldout"])


def test_no_heldout_frame_is_a_training_frame():
    wordings = json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8"))
    for intent in task.SLOTS:
        shared = set(wordings["train"]["intents"][intent]) & set(wordings["heldout"]["intents"][intent])
        assert not shared, f"{intent}: {shared}"


def test_no_heldout_value_occurs_in_a_training_message(rows):
    assert not shared_values(rows["train"], rows["heldout"])


def test_the_words_of_names_cities_and_products_are_new_too():
    wordings = json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8"))
    words = {
        name: {word.lower() for key, items in world["values"].items() for word in items}
        for name, world in wordings.items()
        if name != "shared"  # what kind of thing a product is
    }
    assert not words["train"] & words["heldout"]


def test_a_leak_would_be_seen(rows):
    """The two checks above must be able to fail: held-out rows planted in training are found by both."""
    train = rows["train"] + rows["heldout"][:50]
    assert len(shared_wordings(train, rows["heldout"])) >= 50
    assert set(shared_values(train, rows["heldout"])) >= values(rows["heldout"][:50])


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_every_answer_is_json_whose_values_stand_in_the_message(rows, name):
    for row in rows[name]:
        answer = json.loads(row["completion"])
        assert list(answer) == ["intent", "slots"]
        slots = answer["slots"]
        assert list(slots) == [slot for slot in task.SLOTS[answer["intent"]] if slot in slots], "keys in their order"
        assert all(value and value in row["prompt"] for value in slots.values()), row
        assert not re.search(r"[{}\[\]<>|]", row["prompt"]), f"an unfilled frame: {row['prompt']}"
        assert row["completion"] == json.dumps(answer, ensure_ascii=False), "canonical form"


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_all_intents_and_all_slots_occur_in_equal_shares(rows, name):
    intents = [answer["intent"] for answer in answers(rows[name])]
    assert {intents.count(intent) for intent in task.SLOTS} == {len(rows[name]) // len(task.SLOTS)}
    for intent, slots in task.SLOTS.items():
        seen = {slot for answer in answers(rows[name]) if answer["intent"] == intent for slot in answer["slots"]}
        assert seen == set(slots), intent


def test_no_message_twice(rows):
    messages = [row["prompt"].lower() for name in ("train", "heldout") for row in rows[name]]
    assert len(messages) == len(set(messages))


def test_asking_for_more_rows_than_there_are_wordings_is_an_error_that_says_so():
    wordings = task.side(json.loads((FOLDER / "wordings.json").read_text(encoding="utf-8")), "train")
    intents = {intent: ["the same"] for intent in task.SLOTS}
    world = task.World("train", {**wordings, "intents": intents, "openers": [""], "closers": [""]}, seed=0)
    with pytest.raises(SystemExit, match=r"no new message for .*ask for fewer rows"):
        task.make(world, 10, set())
