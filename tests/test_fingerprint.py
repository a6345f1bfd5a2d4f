"""Files are told from others by what is in them, wherever they lie and whenever they were copied."""

import os

import pytest

from jaxlean import fingerprint
from jaxlean.fingerprint import of_files, of_model


@pytest.fixture
def make(tmp_path):
    def one(name, files=(("model.safetensors", b"weights"), ("config.json", b"{}"))):
        (tmp_path / name).mkdir()
        for file, content in files:
            (tmp_path / name / file).write_bytes(content)
        return tmp_path / name

    return one


def test_a_copy_is_the_same(make):
    first, copy = make("a"), make("b")
    os.utime(copy / "config.json", (0, 0))
    (copy / "README.md").write_text("read on the way")
    assert of_model(first) == of_model(copy)


@pytest.mark.parametrize(
    "files",
    [
        (("model.safetensors", b"weightz"), ("config.json", b"{}")),
        (("model.safetensors", b"weights"), ("config.json", b"{ }")),
        (("model.safetensors", b"weights"),),
        (("model-1.safetensors", b"weights"), ("config.json", b"{}")),
        (("model.safetensors", b"weights"), ("config.json", b"{}"), ("model-2.safetensors", b"")),
    ],
)
def test_another_is_another(files, make):
    assert of_model(make("a")) != of_model(make("b", files))


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**20 + 1, 5 * 2**20 + 17])
def test_every_byte_of_a_small_file_counts(size, tmp_path):
    file = tmp_path / "file"
    content = bytearray(size)
    file.write_bytes(content)
    found = {of_files([file])}
    places = sorted({0, size // 3, size // 2, size - 1})
    for place in places:
        content[place] ^= 1
        file.write_bytes(content)
        content[place] ^= 1
        found.add(of_files([file]))
    assert len(found) == 1 + len(places)


def test_of_a_large_file_pieces_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 40)
    monkeypatch.setattr(fingerprint, "_PIECE", 10)
    (tmp_path / "a").write_bytes(bytes(1000))
    before = of_files([tmp_path / "a"])
    (tmp_path / "a").write_bytes(bytes([1]) * 1000)
    assert of_files([tmp_path / "a"]) != before
    (tmp_path / "a").write_bytes(bytes(999) + b"\1")
    assert of_files([tmp_path / "a"]) != before
