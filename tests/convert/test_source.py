"""Files of other projects, also those that are none."""

from pathlib import Path

import pytest

from jaxlean.convert.source import flat, read
from jaxlean.errors import ConfigError


def test_yaml_and_json(write) -> None:
    assert read(write("a: 1\n2: b\n")) == {"a": 1, "2": "b"}
    assert read(write('{"a":\t1e-05}', "a.json")) == {"a": 1e-05}
    assert read(write("\ufeffa: 1\n")) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("- a\n- b\n", "a.yaml", ["a config is a mapping of keys", "list"]),
        ("just words", "a.yaml", ["a config is a mapping of keys", "str"]),
        ("", "a.yaml", ["is empty"]),
        ("# nothing\n", "a.yaml", ["is empty"]),
        ("", "a.json", ["is empty"]),
        ("a: [1\nb: 2\n", "a.yaml", ["not valid YAML", "a.yaml:2"]),
        ('{"a": 1,\n}', "a.json", ["not valid JSON", "a.json:2"]),
        ("a: !!python/object/apply:os.system ['true']\n", "a.yaml", ["not valid YAML"]),
        ("[" * 3000, "a.yaml", ["not valid YAML"]),
    ],
)
def test_what_is_no_config_is_told(write, text, name, words) -> None:
    with pytest.raises(ConfigError) as told:
        read(write(text, name))
    for word in (*words, name):
        assert word in str(told.value)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "bytes.yaml")


def test_sections_are_flat_and_what_is_empty_is_apart() -> None:
    values = {
        "a": {"b": 1, "c": None}, "d": {"e": 2}, "f": None, "g": "", "rate": "2e-5", "path": "2e-5.jsonl", "s": {},
        "j": '{"k": 3}', "broken": "{k",
    }  # fmt: skip
    source = flat(Path("x.yaml"), values, ["a", "s", "j", "broken"])
    assert source.values == {"a.b": 1, "d": {"e": 2}, "rate": 2e-5, "path": "2e-5.jsonl", "j.k": 3, "broken": "{k"}
    assert source.empty == ("a.c", "f", "g", "s")


def test_what_a_source_is_asked() -> None:
    source = flat(Path("x.yaml"), {"a": "yes", "b": True, "c": 3})
    assert source.get("z", "a") == "yes"
    assert source.get("z", default=5) == 5
    assert source.on("a")
    assert not source.on("z")
    assert source.number("c") == 3.0
    assert source.number("b") is None
    assert source.has("z", "b")
