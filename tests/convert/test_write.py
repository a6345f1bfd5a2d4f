"""Files of converted configs: whole or not at all, and never over another."""

from pathlib import Path

import pytest

from jaxlean import config
from jaxlean.convert import convert
from jaxlean.convert.write import check_output, text, write
from jaxlean.errors import ConfigError


@pytest.fixture
def found(examples):
    return convert(examples / "axolotl_lora.yaml")


def test_a_file_says_where_it_comes_from_and_what_to_run(found, tmp_path) -> None:
    output = tmp_path / "ours.yaml"
    write(found, output)
    first, second, third, *_ = output.read_text(encoding="utf-8").splitlines()
    assert first == f"# jaxlean finetune {output}"
    assert "(Axolotl)" in second
    assert f"jaxlean plan {output}" in second
    assert third.startswith("# Without counterpart: ")
    assert "neftune_noise_alpha" in third
    assert config.load(output) == found.config
    assert [file.name for file in tmp_path.iterdir()] == ["ours.yaml"]


def test_what_the_file_lacks_is_in_the_command(examples) -> None:
    found = convert(examples / "trainer_arguments.json")
    assert text(found).splitlines()[0] == "# jaxlean finetune CONFIG.yaml model.path=MODEL data.train=FILE"


def test_a_place_that_is_not_to_be_written_is_refused(tmp_path) -> None:
    theirs, there = tmp_path / "theirs.yaml", tmp_path / "there.yaml"
    theirs.write_text("a: 1")
    there.write_text("mine")
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="there already"):
        check_output(there, theirs, overwrite=False)
    with pytest.raises(ConfigError, match="there already"):
        check_output(link, theirs, overwrite=False)
    with pytest.raises(ConfigError, match="the file that is converted"):
        check_output(theirs, theirs, overwrite=True)
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path, theirs, overwrite=True)
    check_output(there, theirs, overwrite=True)
    check_output(tmp_path / "new.yaml", theirs, overwrite=False)


def test_what_cannot_be_written_leaves_nothing(found, tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write(found, tmp_path / "absent" / "ours.yaml")

    def full(*_):
        raise OSError(28, "No space left on device")

    output = tmp_path / "ours.yaml"
    output.write_text("before")
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match="No space left"):
        write(found, output)
    assert output.read_text() == "before"
    assert [file.name for file in Path(tmp_path).iterdir()] == ["ours.yaml"]
