"""Every byte that is cut, flipped or removed is noticed; what was never listed is not."""

import errno
from pathlib import Path

import pytest

from jaxlean.run.manifest import MANIFEST, Damaged, Unreadable, read_manifest, write_manifest

CONTENT = {"step": 3, "state": {"loss": 0.1, "rows": [1, 2], "text": 'ä " \\'}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "weights").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty").write_bytes(b"")
    write_manifest(tmp_path, CONTENT)
    return tmp_path


def test_a_whole_folder_gives_its_content_back(folder):
    content = read_manifest(folder)
    assert {key: content[key] for key in CONTENT} == CONTENT
    assert sorted(content["files"]) == ["deep/er/weights", "empty"]


@pytest.mark.parametrize("bit", [1, 64, 128])
def test_any_flipped_bit_of_the_manifest(folder, bit):
    file = folder / MANIFEST
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        with pytest.raises(Damaged, match=MANIFEST):
            read_manifest(folder)
    file.write_bytes(whole)
    read_manifest(folder)


def test_any_length_of_the_manifest(folder):
    file = folder / MANIFEST
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=MANIFEST):
            read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"content": {}}', '{"content": {}, "crc32": 1}'])
def test_other_json_is_not_a_manifest(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(Damaged, match=MANIFEST):
        read_manifest(folder)


def test_a_listed_file_that_changed_is_named(folder):
    file = folder / "deep" / "er" / "weights"
    whole = file.read_bytes()
    for wrong in (whole[:-1], whole + b"x", b"", whole[:100] + b"\0" + whole[101:]):
        file.write_bytes(wrong)
        with pytest.raises(Damaged, match="deep/er/weights"):
            read_manifest(folder)
    file.unlink()
    with pytest.raises(Damaged, match="deep/er/weights is missing"):
        read_manifest(folder)
    file.mkdir()
    with pytest.raises(Damaged, match="deep/er/weights"):
        read_manifest(folder)


@pytest.mark.parametrize("name", [MANIFEST, "weights"])
def test_what_cannot_be_read_now_is_told_from_what_is_missing(folder, name, monkeypatch):
    """As on a network's file system that is away; a file that is not there does not come back."""
    whole = Path.open

    def away(self, *how, **more):
        if self.name == name:
            raise OSError(errno.ESTALE, "Stale file handle")
        return whole(self, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", away)
        with pytest.raises(Unreadable, match=rf"{name} is not readable \(.*Stale file handle"):
            read_manifest(folder)
    read_manifest(folder)
    file = next(folder.rglob(name))
    file.unlink()
    with pytest.raises(Damaged, match="is missing") as missing:
        read_manifest(folder)
    assert not isinstance(missing.value, Unreadable)
    if name == MANIFEST:
        file.mkdir()
        with pytest.raises(Damaged, match="is missing") as missing:
            read_manifest(folder)
        assert not isinstance(missing.value, Unreadable)


def test_no_manifest_is_not_whole(folder):
    (folder / MANIFEST).unlink()
    with pytest.raises(Damaged, match="is missing"):
        read_manifest(folder)


def test_a_file_that_a_desktop_left_behind_is_no_damage(folder):
    (folder / "deep" / ".DS_Store").write_bytes(b"x")
    read_manifest(folder)
