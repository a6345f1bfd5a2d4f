"""The pre-training corpus: reproducible, short documents, and nothing of the quickstart's task in its made-up part."""

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


corpus, task = load("make_corpus"), load("make_task")
SCHEMAS = json.loads((FOLDER / "schemas.json").read_text(encoding="utf-8"))


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with a few lines in each of the four published files' formats."""
    folder = tmp_path / "data"
    folder.mkdir()
    paragraph = (
        "The lobster is a large animal of the sea . It lost its <unk> there . It is well @-@ known , they said . "
    )
    (folder / "wikitext2_valid.txt").write_text(f" = Title = \n {paragraph * 9}\n")
    (folder / "tinyshakespeare.txt").write_text("First Citizen:\nSpeak, speak.\n\n" * 60)
    rows = [
        {"question": f"What is {n}+{n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"}
        for n in range(4)
    ]
    (folder / "gsm8k_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "banking77_train.csv").write_text('text,category\n"Where is it, my card?",card\nI lost the card.,card\n')
    return folder


def test_the_same_seed_gives_the_same_documents(data):
    assert corpus.make(data, 0, 20, 30, 50) == corpus.make(data, 0, 20, 30, 50) != corpus.make(data, 1, 20, 30, 50)


def test_the_copying_lesson_comes_first(data):
    documents = corpus.make(data, 0, 40, 30, 50)

    def said_again(text: str) -> bool:
        return text[:8] in text[8:]

    assert all(said_again(text) for text in documents[:40])
    assert sum(said_again(text) for text in documents[40:]) < len(documents[40:])
    assert max(map(len, documents)) <= corpus.MAX_CHARS


def test_real_text_is_cleaned_and_cut(data):
    documents = list(corpus.real_documents(data))
    text = "\n".join(documents)
    assert not [mark for mark in ("<unk>", "<<", "@-@") if mark in text]
    assert "well-known, they said" in text
    assert "It is 2.\n#### 2" in text
    assert "Where is it, my card?" in text
    assert max(map(len, documents)) <= corpus.MAX_CHARS


def test_a_missing_file_is_named(data):
    (data / "gsm8k_train.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"gsm8k_train\.jsonl is missing"):
        corpus.make(data, 0, 1, 1, 1)


def test_no_test_file_is_read():
    assert not [name for name in corpus.FILES if "test" in name]


def test_the_reserved_keys_are_the_tasks_keys():
    assert {"intent", "slots"} | {slot for slots in task.SLOTS.values() for slot in slots} == corpus.TASK_KEYS


def test_no_made_up_document_uses_a_key_or_label_of_the_task():
    words = corpus.real_words(["date amount time order where lobster speaks of names and other things"])
    maker = corpus.Maker(3, SCHEMAS, words)
    forbidden = re.compile("|".join([*(f'"{key}":' for key in corpus.TASK_KEYS), *task.SLOTS]))
    for _ in range(3000):
        document = maker.document()
        assert not forbidden.search(document), document
        assert len(document) <= corpus.MAX_CHARS


def test_every_answer_can_be_copied_from_its_message():
    maker = corpus.Maker(5, SCHEMAS, ["lobster", "speaks"])
    for source in (maker.record, maker.action, maker.invented):
        for _ in range(300):
            message, _, pairs = source()
            assert all(value in message for _, value in pairs), (message, pairs)
            assert not re.search(r"{\w*(:\w+)?}", message), message
