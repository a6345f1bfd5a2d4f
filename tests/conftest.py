"""What every test stands on: eight CPU devices, no network, nothing written outside a temporary folder.

The environment is set when this file is imported, which is before any test imports jax or a Hugging Face library.
"""

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = Path(__file__).parent.parent / "configs" / "quickstart" / "base"
# Folders whose tests run with strict dtype promotion, so that a float32 that slips into bfloat16 arithmetic (or the
# other way round) is an error. Not where optax runs: its own Adam multiplies int32 by float.
STRICT = {"models", "adapt", "xla"}

# A shared machine is slow now and then, and the first call of a jitted function always is.
# Examples are random where people work, and always the same in CI, which judges a change and not the dice.
hypothesis.settings.register_profile("jaxlean", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("jaxlean")

collect_ignore = ["golden"]  # the script that makes the golden files needs torch

os.environ["JAX_PLATFORMS"] = "cpu"
# Nearly all of a test's time is XLA compiling a program that then runs for milliseconds: LLVM does not optimise it. The
# benchmarks and the quickstart run as users run them.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    home = tempfile.TemporaryDirectory(prefix="jaxlean-tests-")
    config.add_cleanup(home.cleanup)
    os.environ["JAXLEAN_HOME"] = f"{home.name}/jaxlean"
    os.environ["HF_HOME"] = f"{home.name}/huggingface"
    os.environ["XDG_CACHE_HOME"] = f"{home.name}/cache"
    os.environ["XDG_DATA_HOME"] = f"{home.name}/data"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden checkpoints; tests/golden/make_golden.py says what is in it."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    parts = request.path.parts
    if "tests" in parts and STRICT.intersection(parts[parts.index("tests") :]):
        import jax

        with jax.numpy_dtype_promotion("strict"):
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="module")
def _nothing_stays_compiled() -> Iterator[None]:
    """What a file compiled goes with it. Kept, it comes to 6 GB a process, and in the end to most of the time.

    LLVM registers every function's unwind tables in a list, which libgcc searches from its start whenever one is let go
    or an exception is raised: a profile of a process with 2,000 tests behind it is full of that.
    """
    yield
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def compiled_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `small_machine` keeps what was compiled."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def small_machine(compiled_dir: Path) -> Iterator[None]:
    """jax as on a machine with one device, that keeps what it compiled: a run of a few steps takes a second."""
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    first = jax.devices()[:1]
    settings = {
        "jax_compilation_cache_dir": str(compiled_dir),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "devices", lambda *backend: first)
        for name, value in settings.items():
            jax.config.update(name, value)
        reset_cache()
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers that has learned nothing, with the quickstart's tokenizer (2048 tokens, ChatML), float32.

    Its random weights are as large as those of a trained model: what it says depends on the prompt, and an adapter can
    turn it. With the small ones of a fresh model no adapter can, since the embeddings, which are tied, stay small.
    """
    from jaxlean.hub.load import initial
    from jaxlean.hub.write import write_model

    architecture = {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "eos_token_id": None,
        "initializer_range": 0.6,
    }
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_model(initial(architecture, "float32", tokenizer=str(TOKENIZER)), folder)
    return folder


@pytest.fixture(scope="module")
def encoder(small_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that has learned nothing: its vectors tell which words there are."""
    from jaxlean.hub.load import initial
    from jaxlean.hub.write import write_model

    architecture = {
        "model_type": "bert", "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.05,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    write_model(initial(architecture, "float32", tokenizer=str(TOKENIZER)), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows of prompt and completion, of 15 to 20 tokens in ChatML; the completion depends on the whole prompt."""
    colours = ["red", "green", "blue", "white"]
    things = ["house", "train", "order", "street", "price", "water"]
    rows = [
        {"prompt": f"{colour} {thing}", "completion": f"{things[i - c]} {colours[(i + c) % 4]}"}
        for c, colour in enumerate(colours)
        for i, thing in enumerate(things)
    ]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def tiny_values(tiny_base: Path, tiny_rows: Path) -> dict[str, Any]:
    """The config of a run of seconds: 6 steps of 2 x 64 tokens a device; `output_dir` is to be set."""
    return {
        "model": {"path": str(tiny_base), "dtype": "float32"},
        "data": {"train": str(tiny_rows), "eval": str(tiny_rows), "max_length": 64},
        "lora": {"r": 4, "lora_alpha": 8},
        "train": {
            "learning_rate": 0.01,
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "logging_steps": 2,
            "save_steps": 2,
        },
        "eval": {"max_new_tokens": 8},
        "report": {"tensorboard": False},
    }


@pytest.fixture
def tiny_yaml(tiny_values: dict[str, Any], tmp_path: Path) -> Path:
    """`tiny_values` as a file, with `tmp_path / "run"` for output_dir."""
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny_values | {"output_dir": str(tmp_path / "run")}, indent=1))  # which is YAML too
    return file


@pytest.fixture
def tiny_run(tiny_yaml: Path) -> Callable[..., Any]:
    """`tiny_run("train.max_steps=3")`: the `RunConfig` of `tiny_yaml` with overrides."""
    from jaxlean.config import load

    return lambda *overrides: load(tiny_yaml, list(overrides))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`cli("finetune", file, "seed=1")` runs the command in this process and gives (exit code, stdout, stderr)."""
    from jaxlean.cli import main

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as left:
            patched.setattr(sys, "argv", ["jaxlean", *map(str, arguments)])
            patched.setenv("COLUMNS", "250")  # so wide that no message is broken into lines
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return command


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with an encoder; with it in use, `tiny_base` is loaded as one by every task but `generate`."""
    import importlib.util

    from jaxlean.hub import load as hub
    from jaxlean.run import evaluate, merge

    if "stand_in" not in sys.modules:
        spec = importlib.util.spec_from_file_location("stand_in", Path(__file__).parent / "stand_in.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["stand_in"] = module
        spec.loader.exec_module(module)
    module = sys.modules["stand_in"]
    load = module.loader(hub.load, shapes=False)
    monkeypatch.setattr(hub, "outline", module.loader(hub.outline, shapes=True))
    monkeypatch.setattr(hub, "load", load)
    monkeypatch.setattr(evaluate, "load", load)
    monkeypatch.setattr(merge, "load", load)
    return module
