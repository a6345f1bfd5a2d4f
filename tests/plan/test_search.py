"""The search on one target: what fits is found, what does not says by how much, what fails harms nothing else."""

import json

import jax
import pytest

from jaxlean.plan import search as module
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.search import Row, search
from jaxlean.plan.target import parse

LENGTH = 64


def rows(config, target="cpu", file=None, **options):
    return list(search(config, parse(target, file), length=LENGTH, **options))


@pytest.mark.slow
def test_the_first_that_fits_is_compiled_and_those_after_it_only_if_they_may_be_faster(job):
    seen = []
    found = rows(job(), "cpu:8", most=2, starting=seen.append)
    assert 1 <= len(found) <= 2
    assert {row.status for row in found} == {"fits"}
    assert [str(row.candidate) for row in found] == [str(candidate) for candidate in seen]
    for row in found:
        axes = row.candidate.axes
        assert row.candidate.microbatch * row.candidate.accumulation * axes["data"] * axes["fsdp"] == 8
        assert 0 < row.memory < row.capacity
        assert row.flops > 0
        assert 0 <= row.exchange_seconds < row.step_seconds


def test_as_it_is_written_nothing_is_chosen(job, monkeypatch):
    asked = []

    def compiled(config, target, devices, candidate, **named):
        asked.append(candidate)
        return module.Compiled(1, True, 1.0, 0.0, 1.0, 0.0, 0, 0.0)

    monkeypatch.setattr(module, "compile_candidate", compiled)
    train = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    (row,) = rows(job(train=train), ways="own")
    assert row.candidate == Candidate((1, 1, 1, 1, 1), 2, 4, "float32", "none", "none")
    rows(job(train=train), ways="spread", most=8)
    assert {(candidate.quantization, candidate.remat) for candidate in asked} == {("none", "none")}
    # on devices that the microbatch does not divide among, the mesh stays as it is
    (spread, *_) = rows(job(train=train), "cpu:8", ways="own")
    assert spread.candidate.axes["data"] == 8
    assert spread.candidate.microbatch == 1
    # the policy of `auto` is what is looked for
    assert rows(job(train=train | {"remat": "auto"}), ways="own")[0].candidate.microbatch == 2


@pytest.mark.slow
def test_a_config_that_does_not_fit_as_it_is_written_says_so_and_what_would_mend_it(job, hardware):
    config = job(train={"per_device_train_batch_size": 8, "remat": "none"}, model={"attention": "plain"})
    (whole,) = (row for row in rows(config, most=1))
    table = hardware(0.6 * whole.memory)
    found = rows(config, file=table, most=2)
    written = next(row for row in found if row.as_written)
    assert written.status == "too large"
    assert written.memory == pytest.approx(whole.memory)
    assert written.candidate.remat == "none"
    setting, _, rest = written.remedy.partition(" does: ")
    assert "=" in setting
    assert rest.endswith("s a step")
    # the others have microbatches to choose, and nothing else: the config sets the policy
    others = [row for row in found if not row.as_written]
    assert {row.candidate.remat for row in others} == {"none"}
    assert any(row.status == "fits" and row.candidate.microbatch < 8 for row in others)


@pytest.mark.slow
def test_where_nothing_fits_the_smallest_is_shown(job, hardware):
    found = rows(job(lora=None), file=hardware(1e5), most=1)
    assert found
    assert {row.status for row in found} == {"too large"}
    assert all(row.memory > row.capacity for row in found)


@pytest.mark.slow
def test_a_compiler_that_fails_on_one_candidate_is_asked_for_the_next(job, monkeypatch):
    real, asked = module.compile_candidate, []

    def fails_once(*arguments, **named):
        asked.append(arguments[3])
        if len(asked) == 1:
            raise RuntimeError("INTERNAL: a bug\nand its stack")
        return real(*arguments, **named)

    monkeypatch.setattr(module, "compile_candidate", fails_once)
    first, *rest = rows(job(), "cpu:2", most=3)
    assert (first.status, first.note) == ("failed", "the compiler failed: INTERNAL: a bug")
    assert rest[0].status == "fits"
    assert len(set(map(str, asked))) == len(asked)


@pytest.mark.slow
def test_what_crashed_before_is_skipped(job, monkeypatch):
    asked = []

    def fails(config, target, devices, candidate, **named):
        asked.append(str(candidate))
        raise RuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(module, "compile_candidate", fails)
    config = job(train={"remat": "full"})
    (first,) = rows(config, "cpu:2", most=1)
    (second,) = rows(config, "cpu:2", most=1, skip=frozenset([str(first.candidate)]))
    assert asked == [str(first.candidate), str(second.candidate)]
    assert first.candidate != second.candidate


def test_without_its_compiler_a_target_has_a_bound(job, monkeypatch):
    monkeypatch.setattr(module, "missing", lambda target: "the compiler is not installed")
    (row,) = rows(job(), "l4:1")
    assert (row.status, row.note) == ("bound", "bound only: the compiler is not installed")
    assert 0 < row.memory < row.capacity
    assert row.step_seconds > 0


def test_a_target_that_nothing_divides_is_a_row(job):
    (row,) = rows(job(), "cpu:3", devices=jax.devices()[:3])
    assert row.status == "nothing"
    assert "divides" in row.note


def test_a_job_that_cannot_be_is_a_row(job):
    (row,) = rows(job(model={"path": "no/such/folder"}))
    assert row.status == "failed"
    assert row.note == "no such model folder"


@pytest.mark.parametrize(("target", "wanted", "split"), [
    ("v5e:2x4", "auto", "block"), ("v5e:2x4", "splash", "block"), ("v5e:2x4", "plain", "plain"),
    ("l4:2", "auto", "auto"),
])  # fmt: skip
def test_sequences_that_are_split_are_guessed_with_the_attention_that_they_will_have(
    job, monkeypatch, target, wanted, split
):
    real, asked = module.Analysis, set()

    class Analysis(real):
        def __init__(self, config, *rest, **how):
            self.attention = config.model.attention
            changed = config.model_copy(update={"model": config.model.model_copy(update={"attention": "plain"})})
            super().__init__(changed, *rest, **how)

        def guesses(self, candidate):
            asked.add((candidate.axes["context"] > 1, self.attention))
            return super().guesses(candidate)

    monkeypatch.setattr(module, "Analysis", Analysis)
    target = parse(target)
    config = job(model={"attention": wanted})
    assert module._guesses(config, target, jax.devices()[0], [("bfloat16", "none")], rows=8, length=LENGTH)
    assert asked == {(False, wanted), (True, split)}


def test_which_base_is_open(job):
    free = job(model={})
    assert {form for _, form in module._bases(free, parse("l4:1"))} == {"none", "int8", "nf4"}
    assert module._bases(job(model={"quantization": "none"}), parse("l4:1")) == [("float32", "none")]
    assert module._bases(job(lora=None), parse("l4:1")) == [("float32", "none")]
    open_ = job(model={"dtype": "auto"})
    assert {dtype for dtype, _ in module._bases(open_, parse("cpu"))} == {"float32", "bfloat16"}


def test_a_base_that_is_quantized_in_its_files_stays_so(job, tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    assert module._bases(job(model={"path": str(tmp_path)}), parse("l4:1")) == [("float32", "none")]


def test_rows_go_through_json():
    candidate = Candidate((1, 2, 1, 1, 4), 2, 3, "bfloat16", "nf4", ("query", "gate"))
    for row in (Row("l4:8", "fits", candidate, 1.0, 2, 3.0, 4.0, 5.0, "note", 6.0, True, "cut"), Row("cpu", "nothing")):
        assert Row.from_dict(json.loads(json.dumps(row.as_dict()))) == row
