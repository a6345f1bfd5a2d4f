"""Golden checkpoints: loaded once, compared with what transformers computed, copied to be changed."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.hub.load import Model, load
from jaxlean.xla.mesh import make_mesh

TOLERANCE = 1e-4


def one_device() -> jax.sharding.Mesh:
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def loaded(golden: Path) -> Callable[[str], Model]:
    """A golden checkpoint by its name, in float32 on one device; loaded once, not to be changed."""
    return cache(lambda name: load(golden / name, "float32", one_device()))


@pytest.fixture(scope="session")
def expected(golden: Path) -> Callable[[str], dict[str, np.ndarray]]:
    """What transformers (or PEFT) computed for a golden folder."""
    return lambda name: dict(np.load(golden / name / "expected.npz"))


@pytest.fixture
def parity(loaded: Callable[[str], Model], expected: Callable[[str], dict[str, np.ndarray]]) -> Callable[[str], None]:
    """Assert that a checkpoint's logits, and where they are known its loss and gradients, are transformers'."""

    def check(name: str) -> None:
        model, wanted = loaded(name), expected(name)
        tokens = jnp.asarray(wanted["tokens"])

        def mean_loss(params: tree.Tree) -> tuple[jax.Array, jax.Array]:
            logits = nnx.merge(model.graph, params)(tokens)
            likely = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
            return -likely.mean(), logits

        gradients = {key.removeprefix("grad:"): value for key, value in wanted.items() if key.startswith("grad:")}
        if not gradients:
            np.testing.assert_allclose(model(tokens), wanted["logits"], atol=TOLERANCE, rtol=0)
            return
        (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(model.params)
        np.testing.assert_allclose(logits, wanted["logits"], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(loss, wanted["loss"], atol=1e-5, rtol=0)
        ours = {}
        for path, leaf in tree.flatten(grads).items():
            stacked = np.asarray(leaf) if "{}" in model.family.tensor(path) else np.asarray(leaf)[None]
            for i, row in enumerate(stacked):
                ours[model.family.tensor(path).format(i)] = row.T if path.endswith(".kernel") else row
        for key, gradient in gradients.items():
            assert np.abs(gradient).max() > 1e-3
            np.testing.assert_allclose(ours[key], gradient, atol=TOLERANCE, rtol=0, err_msg=key)

    return check


class Checkpoint:
    """A copy of a golden checkpoint that a test may damage."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "model.safetensors"

    def change(self, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        """Rewrite the tensors as `change` leaves them."""
        tensors = load_file(self.file)
        change(tensors)
        save_file(tensors, self.file)

    def configure(self, **changes: Any) -> None:
        """Change keys of config.json; None removes one."""
        file = self.folder / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def shard(self, num: int = 3) -> list[Path]:
        """Split the one file into several and write their index, tensors dealt out in turn."""
        tensors = load_file(self.file)
        self.file.unlink()
        files = [self.folder / f"model-{i + 1:05d}-of-{num:05d}.safetensors" for i in range(num)]
        weight_map = {}
        for i, file in enumerate(files):
            part = {name: tensors[name] for name in sorted(tensors)[i::num]}
            save_file(part, file)
            weight_map |= dict.fromkeys(part, file.name)
        index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())}, "weight_map": weight_map}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return files


@pytest.fixture
def checkpoint(golden: Path, tmp_path: Path) -> Callable[..., Checkpoint]:
    """A copy of a golden checkpoint, to be damaged: `checkpoint("llama_gqa")`."""

    def copy(name: str) -> Checkpoint:
        shutil.copytree(golden / name, tmp_path / name)
        return Checkpoint(tmp_path / name)

    return copy
