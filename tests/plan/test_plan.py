"""From a config to a plan, to its file, and back into a run; the workers are stand-ins."""

import json
from dataclasses import replace

import pytest

from jaxlean.errors import ConfigError, UserError
from jaxlean.plan import plan as module
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.offer import JobSize
from jaxlean.plan.plan import apply, best_of_each, check_writable, describe, plan, write
from jaxlean.plan.search import Row
from jaxlean.plan.target import parse
from jaxlean.run.finetune import finetune

ONE = Candidate((1, 1, 1, 1, 1), 1, 2, "float32", "int8", ("query", "gate"))
EIGHT = Candidate((2, 4, 1, 1, 1), 1, 1, "float32", "none", "full")


def row(target, candidate=ONE, seconds=0.5, **more):
    return Row(target, "fits", candidate, 1e9, parse(target).capacity, seconds, 0.0, 1e12, **more)


@pytest.fixture
def rows(monkeypatch):
    """What the workers would find; `rows.jobs` is what they were told."""

    class Found(list):
        pass

    found = Found([row("cpu")])

    def run(jobs, **how):
        found.jobs, found.how = list(jobs), how
        yield from found

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr("jaxlean.plan.offer.cheapest", lambda name: None)
    return found


def test_a_job_is_described_by_its_data(tiny_run):
    work = describe(tiny_run())
    assert (work.num_steps, work.rows, work.length) == (6, 2, 64)
    assert 24 * 3 < work.tokens < 24 * 20
    assert describe(tiny_run("train.max_steps=null", "data.packing=false"), rows=8).num_steps == 3
    assert describe(tiny_run("mesh.data=4")).rows == 8
    for difficulty in ("length", "loss"):  # of which the second is known only where the base is
        assert describe(tiny_run(f"data.curriculum={difficulty}")).num_steps == 6
        ordered = describe(
            tiny_run(f"data.curriculum={difficulty}", "train.max_steps=null", "data.packing=false"), rows=8
        )
        assert (ordered.num_steps, ordered.length) == (3, 64)
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        describe(tiny_run("model.path=null"))
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        describe(tiny_run("data.train=null"))


def test_each_target_is_a_job_and_what_they_find_is_priced(tiny_run, rows):
    watched = []
    rows[:] = [row("l4", seconds=0.5), row("cpu:8", EIGHT, 500.0), row("l4", replace(ONE, microbatch=2), 0.6)]
    found = plan(tiny_run("mesh=auto"), ["l4", " cpu:8", "l4"], parallel=3, limit_seconds=9, most=2, watch=watched)
    assert [(job.target, job.length, job.most, job.host_devices) for job in rows.jobs] == [
        ("l4", 64, 2, 1),
        ("cpu:8", 64, 2, 8),
    ]
    assert rows.how == {"parallel": 3, "limit_seconds": 9, "watch": watched}
    assert not rows.jobs[0].config["mesh"]["auto"], "what it would choose here is chosen for each target"
    assert [each.row.target for each in found.offers] == ["l4", "l4", "cpu:8"]
    assert found.winner is found.offers[0]
    assert found.winner.hours == pytest.approx(6 * 0.5 / 3600)
    assert [each.row.step_seconds for each in best_of_each(found.offers)] == [0.5, 500.0]


def test_nothing_may_win(tiny_run, rows):
    assert plan(tiny_run(), ["cpu"], deadline_hours=0).winner is None
    rows[:] = [Row("cpu", "failed", note="it broke")]
    assert plan(tiny_run(), ["cpu"]).winner is None
    rows.clear()
    assert plan(tiny_run(), ["cpu"]).winner is None


def test_a_target_that_is_none_is_told_before_anything_else(tiny_run, rows):
    with pytest.raises(UserError, match="no such target"):
        plan(tiny_run("model.path=null"), ["h1000"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["lora=null", "train.trainable=[nothing]"], "train.trainable"),
        (["train.remat=[qeury]"], "no such activation"),
        (["lora=null", "model.quantization=int8"], "a quantized matrix cannot train"),
    ],
)
def test_what_is_wrong_on_every_target_is_said_once(tiny_run, rows, change, words):
    with pytest.raises(UserError, match=words):
        plan(tiny_run(*change), ["l4", "cpu"])


def test_it_goes_into_a_file_and_a_config(tiny_run, rows, tmp_path):
    rows[:] = [row("cpu:8", EIGHT)]
    file = tmp_path / "plan.json"
    write(plan(tiny_run(), ["cpu:8"]), file)
    values = json.loads(file.read_text())
    assert (values["format"], values["target"]) == (1, "cpu:8")
    assert JobSize(**values["work"]) == describe(tiny_run())
    assert values["offers"][0]["row"]["candidate"] == EIGHT.as_dict()
    assert values["config"]["train"]["max_steps"] == 6
    assert [entry.name for entry in tmp_path.iterdir() if "plan.json" in entry.name] == ["plan.json"]
    assert file.stat().st_mode & 0o077 == (tmp_path / "tiny.yaml").stat().st_mode & 0o077, "others may read it"

    before = tiny_run("mesh=auto", "seed=3")
    changed = apply(before, file)
    assert (changed.mesh.auto, changed.mesh.data, changed.mesh.fsdp, changed.mesh.host_devices) == (False, 2, 4, 8)
    assert (changed.train.per_device_train_batch_size, changed.train.remat) == (1, "full")
    assert changed.seed == 3
    assert before.mesh.auto, "the config it was applied to is another"


def test_a_plan_for_other_devices(tiny_run, rows, tmp_path, capsys):
    """Here are eight of the CPU."""
    file = tmp_path / "plan.json"
    rows[:] = [row("h100-80gb:8", EIGHT)]
    write(plan(tiny_run(), ["h100-80gb:8"]), file)
    assert apply(tiny_run(), file).mesh.fsdp == 4
    assert capsys.readouterr().out == (
        "plan: made for h100-80gb:8, run on 8 of CPU: its settings hold, its memory, hours and prices do not\n"
    )
    rows[:] = [row("l4")]
    write(plan(tiny_run(), ["l4"]), file)
    with pytest.raises(ConfigError) as caught:
        apply(tiny_run(), file)
    for words in ("another number of devices", "plan.json", "got:    8 of CPU", "wanted: l4", "--targets cpu:8"):
        assert words in str(caught.value)


def test_a_plan_of_another_job_is_refused(tiny_run, rows, tmp_path):
    file = tmp_path / "plan.json"
    rows[:] = [row("cpu:8", EIGHT)]
    write(plan(tiny_run(), ["cpu:8"]), file)
    for change, was in (
        ("data.max_length=128", "64"), ("train.max_steps=7", "6"), ("lora=null", "{"), ("train.remat=mlp", "none"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            apply(tiny_run(change), file)
        assert f"the plan is of another job: {change.split('=')[0]}" in str(caught.value)
        assert f"wanted: {was}" in str(caught.value)
    assert apply(tiny_run("train.learning_rate=1e-3", "train.save_steps=3"), file).mesh.fsdp == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not a plan", "--json FILE"]),
        ("\x00\xff", ["not a plan"]),
        ("[]", ["not a plan of this jaxlean", "format 1"]),
        (
            '{"format": 2, "settings": {"train.remat": "full"}}',
            ["not a plan of this jaxlean", "format 1", "plan again"],
        ),
        ('{"format": 1, "settings": null}', ["nothing won", "other targets"]),
        ('{"format": 1, "target": "cpu:8", "settings": ["a"]}', ["not a plan", "AttributeError"]),
        ('{"format": 1, "target": "cpu:8", "settings": {"trian.remat": "full"}}', ["not a plan", "trian"]),
        ('{"format": 1, "settings": {"train.remat": "full"}}', ["not a plan", "target"]),
        ('{"format": 1, "target": "cpu:8", "settings": {"train.remta": "full"}}', ["unknown key", "remat"]),
        ('{"format": 1, "target": "cpu:8", "settings": {"mesh.data": "many"}}', ["mesh.data", "many"]),
        ('{"format": 1, "target": "k80", "settings": {"train.remat": "full"}}', ["no such target", "k80"]),
    ],
)
def test_what_is_no_plan(tiny_run, tmp_path, text, words):
    file = tmp_path / "plan.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        apply(tiny_run(), file)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="no such plan"):
        apply(tiny_run(), tmp_path / "none.json")
    with pytest.raises(ConfigError, match="not a plan"):
        apply(tiny_run(), tmp_path)


def test_a_place_that_cannot_be_written(tiny_run, rows, tmp_path):
    found = plan(tiny_run(), ["cpu"])
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path, tmp_path / "none" / "plan.json", tmp_path / "file" / "plan.json"):
        for attempt in (lambda place: write(found, place), check_writable):
            with pytest.raises(ConfigError, match="the plan cannot be written there") as caught:
                attempt(place)
            assert str(place) in str(caught.value)
            assert "--json names a file" in str(caught.value)
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_a_link_stays_one_and_a_pipe_is_written_to(tiny_run, rows, tmp_path):
    found = plan(tiny_run(), ["cpu"])
    (tmp_path / "link").symlink_to(tmp_path / "plan.json")
    write(found, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "plan.json").read_text())["target"] == "cpu"
    check_writable(module.Path("/dev/null"))
    write(found, module.Path("/dev/null"))
    assert module.Path("/dev/null").is_char_device()


@pytest.mark.usefixtures("small_machine")
def test_finetune_runs_the_winner(tiny_run, rows, tmp_path, capsys):
    file = tmp_path / "plan.json"
    job = ("data.eval=null", "train.max_steps=2")
    write(plan(tiny_run(*job), ["cpu"]), file)
    config = apply(tiny_run(*job), file)
    summary = finetune(config)
    out = capsys.readouterr().out
    assert "2 of 2 x 64 tokens" in out, "a row at a time, and two of them a step"
    assert "in int8 and float32" in out
    assert summary["status"] == "completed"
