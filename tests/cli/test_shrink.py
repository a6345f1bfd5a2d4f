"""Verbs that turn what was trained into what is served, from the command line."""

from pathlib import Path


def test_merge_asks_for_what_it_is_told(cli, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.run.merge.merge", lambda *given, **how: asked.update(how, given=given))
    code, out, err = cli("merge", "adapter", "out", "--base", "org/base", "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    assert asked == {"given": (Path("adapter"), Path("out")), "base": "org/base", "dtype": "bfloat16"}
    assert out == "merged model: out\n"


def test_export_takes_settings_behind_its_two_folders(cli, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.run.export.export", lambda *given, **how: asked.update(how, given=given))
    code, _, err = cli("export", "run", "out", "quantize.method=awq", "--format", "w4a16")
    assert (code, err) == (0, "")
    assert asked == {"given": (Path("run"), Path("out"), "w4a16", ["quantize.method=awq"]), "length": None}


def test_average_asks_for_what_it_is_told(cli, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxlean.run.average.average_adapters", lambda *given, **how: asked.update(how, given=given))
    code, out, err = cli("average", "a", "b", "-o", "out", "--weights", "3,1", "--rank", "8", "--base", "org/base")
    assert (code, err) == (0, "")
    assert asked == {
        "given": ([Path("a"), Path("b")], Path("out")), "weights": "3,1", "method": "exact", "rank": 8,
        "base": "org/base",
    }  # fmt: skip
    assert out == "averaged adapter: out\n"
    assert cli("average", "a", "b", "-o", "out", "--method", "mean")[0] == 2


def test_average_that_cannot_be_is_a_message(cli, tmp_path):
    code, _, err = cli("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: no such adapter folder")
