"""`import jaxlean` is instant: what is heavy comes with its first use."""

import subprocess
import sys

import pytest

import jaxlean

HEAVY = ("jax", "flax", "transformers", "datasets", "grain", "optax", "orbax", "optuna", "wandb", "torch")


def test_import_is_light() -> None:
    script = f"import sys, jaxlean; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_names() -> None:
    assert callable(jaxlean.load)
    assert jaxlean.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="has no attribute 'lood'"):
        _ = jaxlean.lood
