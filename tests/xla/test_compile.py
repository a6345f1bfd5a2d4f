"""The compilation cache: where it lies, that a second process reads it, and that nothing wrong with it stops a run."""

import json
import logging
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from jaxlean.xla import compile as module
from jaxlean.xla.compile import Compilations, cache_folder, use_cache, user_cache_folder

NAMES = (
    *("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_compilation_cache_max_size"),
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """jax as it starts, and afterwards as it was."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(module, "_turned_to", None)  # what an earlier test of this process has turned on
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def compiled(number: float) -> bool | None:
    """Compile a small program, which is another one for each number; whether it came from the cache."""
    shape = jax.ShapeDtypeStruct((4,), jnp.float32)
    programs = Compilations()
    jax.jit(lambda x: x * number + 1).lower(shape).compile()
    return programs.all_from_cache


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def test_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "jaxlean"
    folder = cache_folder()
    assert folder.parent == tmp_path / "jaxlean" / "xla"
    assert not folder.exists(), "asking makes nothing"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the rule says to ignore
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert user_cache_folder() == tmp_path / ".cache" / "jaxlean"
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert user_cache_folder() == tmp_path / "Library" / "Caches" / "jaxlean"
    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert user_cache_folder() == tmp_path / "local" / "jaxlean" / "Cache"


def test_who_decides(monkeypatch, tmp_path):
    """The config's folder or `false`, then jax's own setting, then the user's folder."""
    told = tmp_path / "told"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(told))
    assert cache_folder() == told, "as it is: jax would use it in the same way"
    assert cache_folder(str(tmp_path / "config")).parent == tmp_path / "config"
    assert cache_folder(False) is None
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "set"))
    assert cache_folder() == tmp_path / "set"
    jax.config.update("jax_enable_compilation_cache", False)
    assert cache_folder() is None


def test_another_processor_has_another_folder(monkeypatch, tmp_path):
    first = cache_folder(str(tmp_path))
    assert cache_folder(str(tmp_path)) == first
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: read(self, **how).replace("flags\t", "flags\tnewer "))
    monkeypatch.setattr(module.platform, "processor", lambda: "newer")
    assert cache_folder(str(tmp_path)) != first


def test_a_program_is_read_back_and_small_ones_are_kept(tmp_path):
    folder = use_cache(str(tmp_path))
    assert compiled(3.0) is False
    assert len(entries(folder)) == 1
    assert compiled(3.0) is True
    assert compiled(4.0) is False
    assert use_cache(False) is None
    assert compiled(5.0) is None, "not asked"
    assert len(entries(folder)) == 2
    assert use_cache(str(tmp_path / "elsewhere")) != folder
    assert compiled(3.0) is False
    assert use_cache(str(tmp_path)) == folder
    assert compiled(3.0) is True


def test_what_one_run_chose_does_not_stick_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "told"))
    for _ in range(2):
        assert use_cache(str(tmp_path / "config")).parent == tmp_path / "config"
        assert use_cache() == tmp_path / "told"
        assert use_cache(False) is None
        assert use_cache() == tmp_path / "told"


def test_nothing_compiled_is_neither():
    assert Compilations().all_from_cache is None


@pytest.mark.parametrize("torn", [lambda whole: whole[:50], lambda whole: b"", lambda whole: b"?" + whole[1:]])
def test_what_a_killed_process_left_half_written_is_compiled_and_written_anew(tmp_path, torn):
    folder = use_cache(str(tmp_path))
    compiled(3.0)
    compiled(4.0)
    spoilt, other = entries(folder)
    whole = spoilt.read_bytes()
    spoilt.write_bytes(torn(whole))
    use_cache(str(tmp_path))
    assert entries(folder) == [other]
    assert sorted([compiled(3.0), compiled(4.0)]) == [False, True]
    assert spoilt.read_bytes()[:2] == whole[:2]
    assert zlib.decompress(spoilt.read_bytes())


def zstd(checksum: bool) -> bytes:
    """A frame by hand (RFC 8878): a raw block of 5 bytes, one byte repeated 9 times, a last raw block of 3."""
    blocks = [(0, b"12345", 5), (1, b"x", 9), (0, b"678", 3)]
    frame = bytes([0x28, 0xB5, 0x2F, 0xFD, 0x20 | checksum << 2, 17])  # the size of the content in one byte
    for at, (kind, content, size) in enumerate(blocks):
        frame += (size << 3 | kind << 1 | (at == len(blocks) - 1)).to_bytes(3, "little") + content
    return frame + b"sums" * checksum


@pytest.mark.parametrize("checksum", [False, True])
def test_entries_that_were_written_with_zstandard_are_told_apart_too(checksum):
    whole = zstd(checksum)
    assert module._whole(whole)
    assert not [length for length in range(len(whole)) if module._whole(whole[:length])]


def test_an_entry_is_looked_at_once(tmp_path, monkeypatch):
    folder = use_cache(str(tmp_path))
    compiled(3.0)
    (entry,) = entries(folder)
    looked = []
    monkeypatch.setattr(module, "_whole", lambda content: looked.append(content) or True)
    use_cache(str(tmp_path))
    os.utime(entry, (1, 1))
    use_cache(str(tmp_path))
    assert len(looked) == 1


def test_the_folder_is_kept_small(tmp_path, monkeypatch):
    folder = use_cache(str(tmp_path))
    for age, name in ((10, "b"), (5, "c"), (1, "d"), (100, "a")):
        file = folder / f"jit_{name}-1-cache"
        file.write_bytes(zlib.compress(name.encode() * 10) + bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    size = sum(entry.stat().st_size for entry in entries(folder))
    module._shrink(folder, size)
    assert len(entries(folder)) == 4
    monkeypatch.setattr(module, "MAX_BYTES", size // 2 + 1)
    use_cache(str(tmp_path))
    assert [entry.name for entry in entries(folder)] == ["jit_c-1-cache", "jit_d-1-cache"], "the last ones used"


def test_jaxs_own_limit_is_jaxs_own_business(tmp_path, monkeypatch):
    folder = use_cache(str(tmp_path))
    file = folder / "jit_a-1-cache"
    file.write_bytes(b"torn")
    jax.config.update("jax_compilation_cache_max_size", 1000)
    use_cache(str(tmp_path))
    assert file.exists()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert use_cache(str(tmp_path / "file")) is None
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.getMessage()
    assert str(tmp_path / "file") in record.getMessage()
    assert compiled(3.0) is None, "and the run goes on"


def test_a_user_without_a_home_is_a_warning_too(tmp_path, caplog, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", nobody)
    assert use_cache() is None
    assert "not kept: Could not determine home directory. (XDG_CACHE_HOME=FOLDER" in caplog.text
    assert use_cache(str(tmp_path)) is not None


def test_a_threshold_that_somebody_set_stays(tmp_path, monkeypatch):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    use_cache(str(tmp_path))
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 7.0


PROCESS = """
import json, sys
import jax, jax.numpy as jnp
from jaxlean.xla.compile import Compilations, use_cache
use_cache(sys.argv[1])
programs = Compilations()
x = jax.random.normal(jax.random.key(0), (64, 64))
y = jax.jit(lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ x), c.sum()), x, length=5))(x)
print(json.dumps([programs.all_from_cache, [float(v) for v in y[1]]]))
"""


def test_a_second_process_reads_it_says_nothing_and_computes_the_same(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2]), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    done = [subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert [process.stderr for process in done] == ["", ""]
    (first, numbers), (second, again) = (json.loads(process.stdout) for process in done)
    assert (first, second) == (False, True)
    assert numbers == again
