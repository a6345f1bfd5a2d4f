"""Golden checkpoints of convolutional networks: read, run, differentiate, and compare with transformers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.hub.convnets import ConvNetFamily, tensor, to_ours, to_theirs
from jaxlean.models.convnet import ConvNetConfig

TOLERANCE = 1e-4  # of the largest number
_UNOPTIMISED = {"xla_backend_optimization_level": 0}  # half the time of compilation, which is most of that of the tests


class Golden(NamedTuple):
    """A checkpoint and what transformers computes with it."""

    config: ConvNetConfig
    params: tree.Tree
    graph: nnx.GraphDef
    modules: dict[str, str]
    tensors: dict[str, np.ndarray]
    expected: Any

    @property
    def pixels(self) -> jax.Array:
        if "pixels" in self.expected:
            return jnp.asarray(self.expected["pixels"])
        return jnp.asarray(self.expected["pixel_values"].transpose(0, 2, 3, 1))

    def logits(self, params: tree.Tree) -> jax.Array:
        return nnx.merge(self.graph, params)(self.pixels)

    def loss(self, params: tree.Tree) -> tuple[jax.Array, jax.Array]:
        logits = self.logits(params)
        return -jax.nn.log_softmax(logits)[jnp.arange(2), self.expected["labels"]].mean(), logits


@pytest.fixture(scope="session")
def read_convnet(golden: Path) -> Callable[[ConvNetFamily, str], Golden]:
    """(family, case) -> the golden checkpoint, as a tree that has been checked against the module."""

    def read(family: ConvNetFamily, case: str) -> Golden:
        from transformers import AutoConfig

        config = family.config(AutoConfig.from_pretrained(golden / case))
        graph, state = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
        shapes = tree.flatten(nnx.to_pure_dict(state))
        modules, tensors = family.modules(config), load_file(golden / case / "model.safetensors")
        params = {path: jnp.asarray(to_ours(path, tensors[tensor(path, modules)])) for path in shapes}
        tree.check(tree.unflatten(params), tree.unflatten(shapes))
        expected = np.load(golden / case / "expected.npz")
        return Golden(config, tree.unflatten(params), graph, modules, tensors, expected)

    return read


@pytest.fixture
def convnet_parity(read_convnet: Callable[..., Golden]) -> Callable[[ConvNetFamily, str], None]:
    """Check a case: logits, loss, gradients, and that every tensor comes back as it was."""

    def check(family: ConvNetFamily, case: str) -> None:
        golden = read_convnet(family, case)
        gradients: tree.Tree = {}
        if "labels" in golden.expected:
            step = jax.jit(jax.value_and_grad(golden.loss, has_aux=True)).lower(golden.params).compile(_UNOPTIMISED)
            (loss, logits), gradients = step(golden.params)
            close("loss", loss, golden.expected["loss"])
        else:
            logits = jax.jit(golden.logits).lower(golden.params).compile(_UNOPTIMISED)(golden.params)
        close("logits", logits, golden.expected["logits"])
        found = {}
        for path, gradient in tree.flatten(gradients).items():
            name = tensor(path, golden.modules)
            found[name] = to_theirs(path, np.asarray(gradient))
            if f"grad:{name}" in golden.expected:
                close(name, found[name], golden.expected[f"grad:{name}"])
        assert {key.removeprefix("grad:") for key in golden.expected if key.startswith("grad:")} <= found.keys()

        leaves = tree.flatten(golden.params)
        written = {tensor(path, golden.modules): to_theirs(path, np.asarray(leaf)) for path, leaf in leaves.items()}
        carried = {n for n in golden.tensors if any(re.search(pattern, n) for pattern in family.carried)}
        assert carried
        assert written.keys() == golden.tensors.keys() - carried
        for name, array in written.items():
            np.testing.assert_array_equal(array, golden.tensors[name], err_msg=name)

    return check


def close(name: str, got: Any, want: np.ndarray) -> None:
    assert got.shape == want.shape, name
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max(), err_msg=name)
