"""Golden checkpoints: loaded once, compared with what transformers computed, copied to be changed."""

import json
import re
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
from jaxlean.hub.write import tensors as written
from jaxlean.hub.write import write_model
from jaxlean.models.decoder import Cache
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


def inputs_of(expected: dict[str, np.ndarray]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The tokens of an `expected.npz`, and what stands beside them: segments and types."""
    names = {"attention_mask": "segments", "token_type_ids": "token_types"}
    beside = {ours: jnp.asarray(expected[theirs]) for theirs, ours in names.items() if theirs in expected}
    return jnp.asarray(expected["tokens"]), beside


@pytest.fixture(scope="session")
def says() -> Callable[[Model, dict[str, np.ndarray]], tuple[jax.Array, np.ndarray]]:
    """(model, an `expected.npz`) -> what the model says of its inputs, and what was wanted."""

    def run(model: Model, wanted: dict[str, np.ndarray]) -> tuple[jax.Array, np.ndarray]:
        want = next(wanted[key] for key in ("logits_per_image", "logits", "hidden") if key in wanted)
        if "pixels" in wanted:
            return model(*(wanted[key] for key in model.config.inputs)), want
        tokens, beside = inputs_of(wanted)
        found = model(tokens, **beside)
        if want.ndim == 2:  # of a whole text
            return found[:, 0], want
        return found * (beside["segments"] > 0)[..., None] if "segments" in beside else found, want

    return run


@pytest.fixture
def parity(loaded: Callable[[str], Model], expected: Callable[[str], dict[str, np.ndarray]]) -> Callable[[str], None]:
    """Assert that a checkpoint's logits, and where they are known its loss and gradients, are transformers'."""

    def check(name: str) -> None:
        model, wanted = loaded(name), expected(name)
        what = "hidden" if "hidden" in wanted else "logits"
        tokens, beside = inputs_of(wanted)

        def mean_loss(params: tree.Tree) -> tuple[jax.Array, jax.Array]:
            found = outputs(params)
            scores, targets = (found, wanted["labels"]) if "labels" in wanted else (found[:, :-1], tokens[:, 1:])
            likely = jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], axis=-1)
            return -likely.mean(), found

        def outputs(params: tree.Tree) -> jax.Array:
            module = nnx.merge(model.graph, params)
            found = (module.hidden if what == "hidden" else module)(tokens, **beside)
            if wanted[what].ndim == 2:  # of a whole text
                return found[:, 0]
            return found * (beside["segments"] > 0)[..., None] if beside else found

        gradients = {key.removeprefix("grad:"): value for key, value in wanted.items() if key.startswith("grad:")}
        if not gradients:
            np.testing.assert_allclose(jax.jit(outputs)(model.params), wanted[what], atol=TOLERANCE, rtol=0)
            return
        (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(model.params)
        np.testing.assert_allclose(logits, wanted["logits"], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(loss, wanted["loss"], atol=1e-5, rtol=0)
        same_gradients(model, grads, gradients)

    return check


def same_gradients(model: Model, ours: tree.Tree, wanted: dict[str, np.ndarray]) -> None:
    """Assert that the gradients of some of a file's tensors are those wanted."""
    found = dict(written(model.names, ours, np.dtype(np.float32)))
    for key, gradient in wanted.items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(found[key], gradient, atol=TOLERANCE, rtol=0, err_msg=key)


@pytest.fixture
def balance_parity(
    loaded: Callable[[str], Model], expected: Callable[[str], dict[str, np.ndarray]]
) -> Callable[[str], None]:
    """Assert that the loss that balances the experts' load is transformers', where that is known."""

    def check(name: str) -> None:
        model, wanted = loaded(name), expected(name)
        if "aux_loss" in wanted:
            _, loss = nnx.merge(model.graph, model.params).hidden_and_balance(jnp.asarray(wanted["tokens"]))
            np.testing.assert_allclose(loss, wanted["aux_loss"], atol=1e-5, rtol=0)

    return check


@pytest.fixture
def image_parity(
    loaded: Callable[[str], Model], expected: Callable[[str], dict[str, np.ndarray]]
) -> Callable[[str], None]:
    """`parity` of a model of images: what it says, relative to the largest number; the loss of labels, or of pairs."""

    def check(name: str) -> None:
        model, wanted = loaded(name), expected(name)
        says = next(key for key in ("logits_per_image", "logits", "hidden") if key in wanted)
        inputs = [wanted[key] for key in model.config.inputs]
        atol = TOLERANCE * np.abs(wanted[says]).max()
        np.testing.assert_allclose(model(*inputs), wanted[says], atol=atol, rtol=0)

        def mean_loss(params: tree.Tree) -> jax.Array:
            found = nnx.merge(model.graph, params)(*inputs)
            if says == "logits":
                return -jax.nn.log_softmax(found)[jnp.arange(len(found)), wanted["labels"]].mean()
            sides = jax.nn.log_softmax(found), jax.nn.log_softmax(found.T)
            return -sum(jnp.diagonal(side).mean() for side in sides) / 2

        gradients = {key.removeprefix("grad:"): value for key, value in wanted.items() if key.startswith("grad:")}
        if gradients:
            loss, grads = jax.jit(jax.value_and_grad(mean_loss))(model.params)
            np.testing.assert_allclose(loss, wanted["loss"], atol=1e-5, rtol=0)
            same_gradients(model, grads, gradients)

    return check


@pytest.fixture
def image_round_trip(
    loaded: Callable[[str], Model], golden: Path, tmp_path: Path
) -> Callable[[str, Callable[[str], bool]], None]:
    """Assert that a checkpoint comes back as it was: its tensors by name, number for number, and its config."""

    def check(name: str, leftover: Callable[[str], bool] = lambda tensor: False) -> None:
        write_model(loaded(name), tmp_path / name)
        before = load_file(golden / name / "model.safetensors")
        after = load_file(tmp_path / name / "model.safetensors")
        assert after.keys() == {key for key in before if not leftover(key)}
        for key, tensor in after.items():
            np.testing.assert_array_equal(tensor, before[key], err_msg=key)
        configs = [json.loads((folder / name / "config.json").read_text()) for folder in (golden, tmp_path)]
        assert configs[0] == configs[1]

    return check


@pytest.fixture
def round_trip(loaded: Callable[[str], Model], golden: Path, tmp_path: Path) -> Callable[[str], None]:
    """Assert that a checkpoint, written again, has the tensors, names and settings that transformers wrote."""

    def tensors_of(folder: Path) -> dict[str, np.ndarray]:
        return {key: x for file in sorted(folder.glob("*.safetensors")) for key, x in load_file(file).items()}

    def settings_of(folder: Path) -> dict[str, Any]:
        config = json.loads((folder / "config.json").read_text())
        return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}

    def today(model: Model, name: str) -> str:
        for pattern, replacement in model.family.renamed:
            name = re.sub(pattern, replacement, name)
        return name.removeprefix(model.family.prefix) if model.bare else name

    def check(name: str) -> None:
        model = loaded(name)
        write_model(model, tmp_path / name)
        got, want = tensors_of(tmp_path / name), tensors_of(golden / name)
        want = {today(model, key): array for key, array in want.items()}
        leaves = tree.flatten(model.params).items()
        own = {key for path, leaf in leaves for _, key in model.names.tensors(path, leaf.shape)}
        passed_over = {key for key in want if any(re.search(rule, key) for rule in model.family.ignored)} - own
        passed_over |= {key for key in want if model.family.more_layers and model.names.is_beyond(key)}
        if getattr(model.config, "tie_embeddings", False):  # whose head may be stored too
            passed_over |= {"lm_head.weight"} & want.keys()
        assert got.keys() == want.keys() - passed_over
        for key, array in got.items():
            assert array.dtype == want[key].dtype
            np.testing.assert_array_equal(array, want[key], err_msg=key)
        assert settings_of(tmp_path / name) == settings_of(golden / name)

    return check


@pytest.fixture
def token_by_token(
    loaded: Callable[[str], Model], expected: Callable[[str], dict[str, np.ndarray]]
) -> Callable[[str], None]:
    """Assert that decoding with a cache gives the logits of the forward pass over everything."""

    def check(name: str) -> None:
        model, tokens = loaded(name), jnp.asarray(expected(name)["tokens"])
        batch, length = tokens.shape
        rope, first = model.config.rope, length // 3
        # past its first context such a rope turns all tokens anew, which a cache does not
        if rope is not None and rope.rope_type in ("dynamic", "longrope"):
            context = rope.original_max_position_embeddings
            if context + 1 < length and rope.rope_type == "dynamic":
                return  # turned anew at every length
            first = context + 1 if context + 1 < length else first
        cache = Cache.empty(model.config, batch, length + 2, jnp.float32)

        @jax.jit
        def decode(params: tree.Tree, part: jax.Array, at: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
            positions = jnp.broadcast_to(at + jnp.arange(part.shape[1], dtype=jnp.int32), part.shape)
            return nnx.merge(model.graph, params).decode(part, positions, jnp.ones_like(part), cache)

        logits, cache = decode(model.params, tokens[:, :first], jnp.int32(0), cache)
        found = [logits]
        for at in range(first, length):
            logits, cache = decode(model.params, tokens[:, at : at + 1], jnp.int32(at), cache)
            found.append(logits)
        np.testing.assert_allclose(jnp.concatenate(found, 1), model(tokens), atol=2e-5, rtol=0)

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
