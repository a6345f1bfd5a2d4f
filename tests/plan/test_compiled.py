"""What the compiler says of a candidate is what `finetune` will run, and is asked for once."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError
from jaxlean.plan import compiled as module
from jaxlean.plan.candidate import Candidate
from jaxlean.plan.compiled import compile_candidate, cycle_seconds
from jaxlean.plan.target import devices_of, parse
from jaxlean.run import finetune as run
from jaxlean.run.finetune import finetune
from jaxlean.run.predict import workspace
from jaxlean.xla.remat_auto import needed_bytes
from jaxlean.xla.work import as_one_kernel

CPU = parse("cpu")
ONE = Candidate((1, 1, 1, 1, 1), 2, 1, "float32", "none", "full")


@pytest.fixture
def job(tiny_run, tmp_path):
    return tiny_run(f"compilation_cache={tmp_path / 'cache'}")


def ask(config, target=CPU, candidate=ONE, length=64, **how):
    return compile_candidate(config, target, devices_of(target), candidate, length=length, **how)


@pytest.fixture
def compilations(monkeypatch):
    """Programs that were compiled, with a product of matrices in the place of the job's step."""
    made, real = [], module.compile_within
    matrix = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    traced = jax.jit(jnp.matmul).trace(matrix, matrix)
    step = SimpleNamespace(trace=lambda: traced)
    model = SimpleNamespace(params={}, config=SimpleNamespace(num_kv_heads=8, hidden_size=8))
    state = SimpleNamespace(trainable={})
    outline = SimpleNamespace(
        build=lambda remat: step, arguments=(), model=model, length=64, rows=8, outer=None, state=state
    )  # fmt: skip
    monkeypatch.setattr(module, "outline", lambda config, mesh, length: outline)
    monkeypatch.setattr(module, "compile_within", lambda *given: made.append(given) or real(*given))
    return made


def test_a_second_plan_takes_it_from_disk(job, compilations):
    first, second = ask(job), ask(job)
    assert len(compilations) == 1
    assert (first.cached, second.cached) == (False, True)
    assert replace(second, cached=False) == first
    assert first.step_seconds == first.work_seconds + first.exchange_seconds > 0
    assert first.compile_seconds > 0
    assert (first.sent, first.collectives, first.fits) == (0, 0, True)
    ask(job, cache=False)
    assert len(compilations) == 2


def changed(config: RunConfig, **sections) -> RunConfig:
    copy = config.model_copy(deep=True)
    for section, values in sections.items():
        for name, value in values.items():
            setattr(getattr(copy, section), name, value)
    return copy


@pytest.mark.parametrize("what", ["lora", "train", "model", "candidate", "length", "card", "shape", "code", "kernel"])
def test_what_is_another_program_is_compiled_again(job, compilations, monkeypatch, what):
    ask(job)
    if what == "lora":
        ask(changed(job, lora={"r": 2}))
    elif what == "train":
        ask(changed(job, train={"loss_chunk_bytes": 100_000}))
    elif what == "model":
        ask(changed(job, model={"dtype": "bfloat16"}))
    elif what == "candidate":
        ask(job, candidate=replace(ONE, remat="none"))
    elif what == "length":
        ask(job, length=32)
    elif what == "card":
        ask(job, replace(CPU, device=CPU.device.model_copy(update={"memory_gb": 1.0})))
    elif what == "shape":
        ask(job, parse("cpu:2"), replace(ONE, mesh=(2, 1, 1, 1, 1)))
    elif what == "code":
        monkeypatch.setattr(module, "_versions", lambda: {"jaxlean": "of tomorrow"})
        ask(job)
    else:
        with as_one_kernel("attention"):
            ask(job)
    assert len(compilations) == 2
    assert len(list((module.Path(job.compilation_cache) / "plan").iterdir())) == 2


def test_a_model_that_changed_under_its_name_is_compiled_again(job, compilations, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    own = changed(job, model={"path": str(base)})
    ask(own)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert not ask(own).cached
    assert len(compilations) == 2


def test_a_price_is_no_part_of_the_program(job, compilations):
    ask(job)
    dearer = CPU.device.model_copy(update={"usd_per_hour": 7.0, "source": "our contract"})
    assert ask(job, replace(CPU, device=dearer)).cached
    assert ask(changed(job, data={"max_length": 63})).cached, "the length of its sequences is what counts"


@pytest.mark.parametrize("text", ["", '{"memory": 12', "[1, 2]", '{"memory": 3}', "\x00\xff"])
def test_a_file_that_is_not_whole_is_written_anew(job, compilations, text):
    first = ask(job)
    (file,) = (module.Path(job.compilation_cache) / "plan").iterdir()
    file.write_text(text, encoding="latin-1")
    assert not ask(job).cached
    assert len(compilations) == 2
    assert ask(job).cached
    assert ask(job).memory == first.memory


def test_no_cache_is_no_error(job, compilations, tmp_path, monkeypatch):
    off = job.model_copy(update={"compilation_cache": False})
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    unwritable = job.model_copy(update={"compilation_cache": str(in_the_way)})
    for config in (off, unwritable):
        assert not ask(config).cached
        assert not ask(config).cached
    assert in_the_way.read_text() == "mine"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "user_cache_folder", homeless)
    assert not ask(job.model_copy(update={"compilation_cache": True})).cached


def test_a_mesh_has_exchanges(job):
    found = ask(job, parse("cpu:2"), replace(ONE, mesh=(2, 1, 1, 1, 1), microbatch=1))
    assert found.sent > 0
    assert found.collectives > 0
    assert found.exchange_seconds > 0
    with pytest.raises(ConfigError, match="expert axis splits nothing"):
        ask(job, parse("cpu:2"), replace(ONE, mesh=(1, 1, 2, 1, 1), microbatch=1))


def test_only_a_tpu_s_compiler_counts_cycles():
    assert cycle_seconds(CPU, devices_of(CPU)) is None
    assert cycle_seconds(parse("l4"), []) is None


@pytest.mark.slow
@pytest.mark.usefixtures("small_machine")
def test_its_memory_is_that_of_the_step_that_finetune_compiles(tiny_run, monkeypatch):
    config = tiny_run("data.eval=null", "train.max_steps=1")
    candidate = replace(ONE, quantization="int8", remat=("query", "gate"))
    real, steps = run.compile_step, []
    monkeypatch.setattr(run, "compile_step", lambda *arguments: steps.append(real(*arguments)) or steps[0])
    summary = finetune(candidate.apply(config))
    found = ask(config, candidate=candidate, cache=False)
    assert found.memory == summary["predicted_memory_bytes"]
    more = workspace("cpu", 32, tokens=candidate.microbatch * 64)  # the tiny base's hidden size
    assert found.memory == needed_bytes(steps[0][0]) + more
    assert found.step_seconds == pytest.approx(summary["predicted_step_seconds"])
