"""What is seen of data that lie here."""

from jaxlean.convert import peek


def test_a_file_beside_the_config_is_seen(source, write) -> None:
    write('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n', "rows.jsonl")
    assert peek.columns("rows.jsonl", source()) == ["prompt", "completion"]
    assert peek.count("rows.jsonl", source()) == 2
    assert peek.count("rows.jsonl", source(), 1) == 1
    found = peek.place("rows.jsonl", source())
    assert found is not None
    assert found.is_file()


def test_what_is_not_here_or_cannot_be_read_is_not_known(source, write) -> None:
    write("{", "broken.jsonl")
    write("", "empty.jsonl")
    write("a", "strange.bin")
    for name in ("broken.jsonl", "empty.jsonl", "strange.bin", "hub/id", "absent.jsonl"):
        assert peek.columns(name, source()) is None
    assert peek.count("hub/id", source()) is None
    assert peek.place("hub/id", source()) is None
