"""auto: what it chooses fits, is proved by a compilation, and costs no more than any policy that fits."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.config import MeshSection
from jaxlean.errors import RunError
from jaxlean.models.build import abstract
from jaxlean.models.decoder import ACTIVATIONS, DecoderConfig
from jaxlean.xla import remat_auto
from jaxlean.xla.mesh import batch_sharding, make_mesh, replicated
from jaxlean.xla.remat import scan_layers
from jaxlean.xla.remat_auto import RATES, Rates, candidates, choose, device_budget, host_memory, needed_bytes, say_bytes
from jaxlean.xla.work import Work, count

LAYERS, ROWS, LENGTH = 36, 8, 32
CONFIG = DecoderConfig(
    vocab_size=16, hidden_size=16, intermediate_size=64, num_layers=LAYERS, num_heads=2, num_kv_heads=1, head_dim=8
)
NAMED = ["none", "full", "dots", "dots_no_batch", "attention", "mlp"]
BATCH = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)


# Where a product costs more than anything else, all the room is worth using.
DEAR = Rates({"float32": 1.0}, product_bytes=1e15, elements=1e9, kept_bytes=1e9)
# less work on the speed of what comes out
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@cache
def build(policy):
    graph, _ = abstract(CONFIG)
    scan = scan_layers(policy, ACTIVATIONS)

    def step(params, tokens):
        return jax.grad(lambda p: jnp.square(nnx.merge(graph, p)(tokens, scan=scan)).mean())(params)

    return jax.jit(step, compiler_options=QUICK)


ARGUMENTS = (abstract(CONFIG)[1], BATCH)


@pytest.fixture(scope="module")
def measured():
    """policy -> bytes that the compiled step takes."""
    with jax.numpy_dtype_promotion("strict"):
        return {p: needed_bytes(build(p).lower(*ARGUMENTS).compile()) for p in ("none", "full", "nested", "attention")}


@pytest.fixture(scope="module")
def traces():
    with jax.numpy_dtype_promotion("strict"):
        return {policy: build(policy).trace(*ARGUMENTS).jaxpr.jaxpr for policy in ("full", "none", "dots")}


def flops_of(policy):
    return count(build(policy).trace(*ARGUMENTS).jaxpr.jaxpr).total_flops


def test_it_fits_and_a_larger_budget_computes_no_more(measured):
    low, high = measured["full"], measured["none"]
    budgets = [low + 1, int(low + 0.2 * (high - low)), int(low + 0.5 * (high - low)), 10 * high]
    shares, sizes = [], []
    for budget in budgets:
        choice = choose(build, ARGUMENTS, budget, ACTIVATIONS, rates=DEAR)
        assert choice.needed == needed_bytes(choice.compiled) <= budget
        assert len(choice.tried) <= 4
        shares.append(choice.recomputed)
        sizes.append(choice.needed)
    assert shares == sorted(shares, reverse=True)
    assert sizes == sorted(sizes)
    assert 0.05 < shares[0] < 0.35  # at most a second forward
    assert shares[-1] < 0.02


def test_with_the_room_of_a_named_policy_it_is_as_good(measured):
    choice = choose(build, ARGUMENTS, measured["attention"], ACTIVATIONS, rates=DEAR)
    assert choice.recomputed <= 1 - flops_of("none") / flops_of("attention") + 1e-9


def test_it_is_the_same_every_time_and_says_what_it_is(measured):
    budget = 10 * measured["none"]
    first, second = (choose(build, ARGUMENTS, budget, ACTIVATIONS, rates=DEAR) for _ in range(2))
    assert (first.policy, first.needed, first.tried) == (second.policy, second.needed, second.tried)
    said = str(first)
    assert said.startswith("remat: auto chose ")
    assert f"{say_bytes(first.needed)} of {say_bytes(budget)}" in said
    assert f"{first.recomputed:.0%} of the step is recomputation" in said


def test_nested_is_the_last_resort_and_the_error_says_by_how_much(measured):
    assert measured["nested"] < measured["full"]
    choice = choose(build, ARGUMENTS, measured["nested"], ACTIVATIONS)
    assert choice.policy == "nested"
    assert choice.needed == measured["nested"]
    asked = []
    with pytest.raises(RunError) as caught:
        choose(build, ARGUMENTS, measured["nested"] // 2, ACTIVATIONS, advice=lambda n: asked.append(n) or "do less")
    assert asked == [measured["nested"]]
    short = measured["nested"] - measured["nested"] // 2
    for words in (
        f"by {say_bytes(short)}",
        "do less",
        "train.memory_budget",
        f"{say_bytes(measured['nested'])} on",
    ):
        assert words in str(caught.value)


def test_a_bad_first_guess_costs_a_compilation_and_no_room(monkeypatch, measured):
    budget = int(measured["full"] + 0.3 * (measured["none"] - measured["full"]))
    good = choose(build, ARGUMENTS, budget, ACTIVATIONS, rates=DEAR)
    monkeypatch.setattr(remat_auto, "_rest", lambda *_: 10.0 * budget)
    bad = choose(build, ARGUMENTS, budget, ACTIVATIONS, rates=DEAR)
    assert bad.tried[0] == ("full", measured["full"])
    assert good.policy != "full"
    assert bad.recomputed == pytest.approx(good.recomputed, abs=0.02)


def test_memory_is_that_of_a_device(measured):
    mesh = make_mesh(MeshSection(data=8))
    arguments = (
        jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated(mesh)), ARGUMENTS[0]),
        jax.ShapeDtypeStruct(BATCH.shape, BATCH.dtype, sharding=batch_sharding(mesh)),
    )
    choice = choose(build, arguments, measured["full"], ACTIVATIONS, shards=8, rates=DEAR)
    assert choice.recomputed < 0.05  # an eighth of the rows: nearly all of it fits


def test_what_the_compiler_has_no_room_for_is_not_taken(monkeypatch, measured):
    """A TPU's compiler raises where a program does not fit."""
    real, refused = jax.stages.Lowered.compile, []
    budget = int(measured["full"] + 0.1 * (measured["none"] - measured["full"]))

    def refusing(lowered):
        compiled = real(lowered)
        if needed_bytes(compiled) > budget:
            refused.append(compiled)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")
        return compiled

    monkeypatch.setattr(jax.stages.Lowered, "compile", refusing)
    monkeypatch.setattr(remat_auto, "_rest", lambda *_: -1e12)  # so that all seems to fit, and the fastest is tried
    choice = choose(build, ARGUMENTS, budget, ACTIVATIONS, rates=DEAR)
    assert refused
    assert choice.needed <= budget


def test_where_the_compiler_refuses_everything_the_error_says_what_it_said(monkeypatch):
    def refusing(lowered):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (65.29G) exceeds available HBM (15.75G). HLO module: jit_step."
        )

    monkeypatch.setattr(jax.stages.Lowered, "compile", refusing)
    with pytest.raises(RunError, match=r"by 50\.1\d GB"):
        choose(build, ARGUMENTS, 20 * 10**9, ACTIVATIONS)


def test_no_candidate_is_beaten_twice(traces):
    found = candidates(traces, ACTIVATIONS, DEAR)
    assert [c.seconds for c in found] == sorted(c.seconds for c in found)
    assert "full" in [c.policy for c in found]
    kept = [c.kept * c.spread for c in found if c.policy != "full"]
    assert kept == sorted(kept, reverse=True)
    assert all(set(c.policy) <= {"gate"} for c in candidates(traces, ["gate"], DEAR) if c.policy[0] == "gate")


def test_where_memory_is_slow_nothing_is_kept(traces):
    slow = Rates({"float32": 1e15}, product_bytes=1e15, elements=1e15, kept_bytes=1.0)
    assert candidates(traces, ACTIVATIONS, slow)[0].policy == "full"
    assert candidates(traces, ACTIVATIONS, DEAR)[0].policy in ("none", "dots")
    # so narrow a layer (16 FLOPs for a byte that it writes) is computed faster than it is read, on any accelerator
    assert "gate" not in candidates(traces, ACTIVATIONS, RATES["gpu"])[0].policy


def test_seconds_are_the_sum_of_their_parts():
    rates = Rates({"float32": 10.0, "bfloat16": 100.0}, product_bytes=4.0, elements=2.0, kept_bytes=5.0)
    work = Work({"float32": 20, "bfloat16": 300, "float64": 10}, product_bytes=8.0, elements=6.0)
    assert rates.seconds(work, 10) == 2 + 3 + 1 + 2 + 3 + 2


def test_the_budget_is_what_a_device_has():
    local = len(jax.local_devices())
    assert local == 8
    # simulated on one machine, whose memory they share
    assert device_budget() == int(host_memory() * 0.75) // local
    assert 1e9 < host_memory() < 1e14
    assert device_budget(jax.devices()[:1]) == int(host_memory() * 0.75)

    class Card:
        process_index = 0

        def __init__(self, limit):
            self.memory_stats = lambda: {"bytes_limit": limit}

    assert device_budget([Card(20), Card(10)]) == 10


def test_a_container_has_less_than_its_machine(monkeypatch, tmp_path):
    whole = host_memory()
    file = tmp_path / "memory.max"
    monkeypatch.setattr(remat_auto, "Path", lambda _: file)
    assert host_memory() == pytest.approx(whole, rel=0.5)
    for text, wanted in (("1000000\n", 1000000), ("max\n", None)):
        file.write_text(text)
        assert wanted is None or host_memory() == wanted
    assert np.isfinite(host_memory())
