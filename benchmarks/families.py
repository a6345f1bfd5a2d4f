"""Every model family against transformers and PEFT: logits, gradients, files, adapters, generation.

    python benchmarks/families.py [--quick] [--out DIR] [--family NAME ...]

Reads nothing but the golden files of tests/golden: small random checkpoints that transformers wrote, with the numbers
that it (and PEFT) computed from them. Each cell is the worst over a family's checkpoints, of a difference divided by
the largest number it is compared with:

    outputs      logits (of encoders hidden states or the heads' logits, of CLIP embeddings), float32
    gradient     of the loss with respect to a few parameters that transformers' gradients were written of
    round trip   loaded and written again: tensors that are not there, or not bit for bit the same; settings that differ
    PEFT         outputs with an adapter that PEFT wrote; its tensors, written again
    generation   logits token by token with a cache, against one forward pass

`--quick` takes one checkpoint a family.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from report import publish
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.config import LoraSection
from jaxlean.hub.adapter import read_adapter, write_adapter
from jaxlean.hub.families import FAMILIES
from jaxlean.hub.load import Model, load
from jaxlean.hub.write import tensors as written
from jaxlean.hub.write import write_model
from jaxlean.models.decoder import Cache, DecoderConfig
from jaxlean.run.merge import load_adapted
from jaxlean.xla.mesh import make_mesh

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
COLUMNS = {
    "family": "", "checkpoints": "d", "outputs": ".1e", "gradient": ".1e", "round_trip": "", "peft": ".1e",
    "generation": ".1e",
}  # fmt: skip
# What of an expected.npz is what the model says, the first that is there.
OUTPUTS = ("logits_per_image", "logits", "hidden")


def relative(got: Any, want: np.ndarray) -> float:
    """The largest difference, in units of the largest number that was wanted."""
    return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def checkpoints(family: str) -> list[Path]:
    """The golden folders of a family."""
    files = sorted(GOLDEN.glob("*/config.json"))
    return [file.parent for file in files if json.loads(file.read_text())["model_type"] == family]


def inputs_of(model: Model, expected: Mapping[str, np.ndarray]) -> tuple[list[Any], dict[str, Any]]:
    """What the model is called with: tokens and what stands beside them, or images."""
    names = {"attention_mask": "segments", "token_type_ids": "token_types"}
    beside = {ours: jnp.asarray(expected[theirs]) for theirs, ours in names.items() if theirs in expected}
    return [jnp.asarray(expected[key]) for key in getattr(model.config, "inputs", ("tokens",))], beside


def answer(model: Model, expected: Mapping[str, np.ndarray], params: tree.Tree) -> tuple[str, jax.Array]:
    """(which of the file's outputs it is, what the model says), as transformers gives it: padding is 0."""
    what = next(key for key in OUTPUTS if key in expected)
    inputs, beside = inputs_of(model, expected)
    module = nnx.merge(model.graph, params)
    if "tokens" not in expected or len(inputs) > 1:
        return what, module(*inputs)
    found = (module.hidden if what == "hidden" else module)(*inputs, **beside)
    if expected[what].ndim == 2:  # of a whole text
        return what, found[:, 0]
    return what, found * (beside["segments"] > 0)[..., None] if "segments" in beside else found


def outputs(model: Model, expected: Mapping[str, np.ndarray]) -> float:
    """The model's against transformers'."""
    what = next(key for key in OUTPUTS if key in expected)
    return relative(jax.jit(lambda params: answer(model, expected, params)[1])(model.params), expected[what])


def gradient(model: Model, expected: Mapping[str, np.ndarray]) -> float | None:
    """Of the mean cross entropy: of the next token, of labels, of pairs; None where none was written."""
    wanted = {key.removeprefix("grad:"): value for key, value in expected.items() if key.startswith("grad:")}
    if not wanted:
        return None

    def loss(params: tree.Tree) -> jax.Array:
        what, found = answer(model, expected, params)
        if what == "logits_per_image":
            sides = jax.nn.log_softmax(found), jax.nn.log_softmax(found.T)
            return -sum(jnp.diagonal(side).mean() for side in sides) / 2
        own = (found, expected["labels"]) if "labels" in expected else (found[:, :-1], expected["tokens"][:, 1:])
        scores, targets = own[0], jnp.asarray(own[1])
        there = targets >= 0
        likely = jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.where(there, targets, 0)[..., None], axis=-1)[
            ..., 0
        ]
        return -jnp.where(there, likely, 0.0).sum() / there.sum()

    found = dict(written(model.names, jax.jit(jax.grad(loss))(model.params), np.dtype(np.float32)))
    return max(relative(found[name], value) for name, value in wanted.items())


def round_trip(model: Model, folder: Path) -> int:
    """How many tensors and settings are not what they were."""

    def tensors(of: Path) -> dict[str, np.ndarray]:
        return {key: x for file in sorted(of.glob("*.safetensors")) for key, x in load_file(file).items()}

    def settings(of: Path) -> dict[str, Any]:
        config = json.loads((of / "config.json").read_text())
        return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}

    def today(name: str) -> str:
        for pattern, replacement in model.family.renamed:
            name = re.sub(pattern, replacement, name)
        return name.removeprefix(model.family.prefix) if model.bare else name

    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "model"
        write_model(model, out)
        got, want = tensors(out), {today(key): x for key, x in tensors(folder).items()}
        passed_over = {key for key in want if any(re.search(rule, key) for rule in model.family.ignored)} - got.keys()
        if "lm_head.weight" not in got:  # a tied head that was stored too
            passed_over |= {key for key in want if key == "lm_head.weight"}
        if model.family.more_layers:
            passed_over |= {key for key in want if model.names.is_beyond(key)}
        wrong = got.keys() ^ (want.keys() - passed_over)
        wrong |= {key for key in got.keys() & want.keys() if not np.array_equal(got[key], want[key])}
        one, other = settings(out), settings(folder)
        return len(wrong) + sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())


def peft(model: Model, name: str) -> float | None:
    """Outputs with each adapter that PEFT wrote for the checkpoint, and the adapter written again; None without one."""
    found = []
    for folder in sorted((GOLDEN / "adapters").glob(f"{name}__*")):
        expected = np.load(folder / "expected.npz")
        leaves = read_adapter(folder, model.names, model.params)
        found.append(outputs(load_adapted(model, folder), expected))
        settings = json.loads((folder / "adapter_config.json").read_text())
        config = LoraSection(
            r=settings["r"], lora_alpha=settings["lora_alpha"], use_dora=settings["use_dora"],
            use_rslora=settings["use_rslora"],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as temporary:
            write_adapter(
                Path(temporary) / "adapter", model.names, leaves, config, base=name,
                task="classify" if settings.get("modules_to_save") else "generate",
            )  # fmt: skip
            again = tree.flatten(read_adapter(Path(temporary) / "adapter", model.names, model.params))
        found += [relative(again[path], np.asarray(leaf)) for path, leaf in tree.flatten(leaves).items() if leaf.any()]
    return max(found, default=None)


def generation(model: Model, expected: Mapping[str, np.ndarray]) -> float | None:
    """Logits of each token decoded by itself against those of all at once; None for what does not generate."""
    if not isinstance(model.config, DecoderConfig):
        return None
    tokens = jnp.asarray(expected["tokens"])
    batch, length = tokens.shape
    rope, first = model.config.rope, length // 3
    # past its first context such a rope turns all tokens anew, which a cache does not: begin there
    if rope is not None and rope.rope_type in ("dynamic", "longrope"):
        context = rope.original_max_position_embeddings
        if context + 1 < length and rope.rope_type == "dynamic":
            return None  # turned anew at every length
        first = context + 1 if context + 1 < length else first
    cache = Cache.empty(model.config, batch, length, jnp.float32)

    @jax.jit
    def decode(params: tree.Tree, part: jax.Array, at: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        positions = jnp.broadcast_to(at + jnp.arange(part.shape[1], dtype=jnp.int32), part.shape)
        return nnx.merge(model.graph, params).decode(part, positions, jnp.ones_like(part), cache)

    logits, cache = decode(model.params, tokens[:, :first], jnp.int32(0), cache)
    found = [logits]
    for at in range(first, length):
        logits, cache = decode(model.params, tokens[:, at : at + 1], jnp.int32(at), cache)
        found.append(logits)
    return relative(jnp.concatenate(found, 1), np.asarray(model(tokens)))


def measure(families: list[str], *, quick: bool) -> Iterator[dict[str, Any]]:
    """One row a checkpoint."""
    mesh = make_mesh(devices=jax.devices()[:1])
    for family in families:
        for folder in checkpoints(family)[: 1 if quick else None]:
            model, expected = load(folder, "float32", mesh), dict(np.load(folder / "expected.npz"))
            yield {
                "family": family, "checkpoint": folder.name, "outputs": outputs(model, expected),
                "gradient": gradient(model, expected), "round_trip": round_trip(model, folder),
                "peft": peft(model, folder.name), "generation": generation(model, expected),
            }  # fmt: skip


def worst(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a family."""
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == family]

        def largest(key: str, own: list[dict[str, Any]] = own, pick: Callable[..., Any] = max) -> Any:
            return pick((row[key] for row in own if row[key] is not None), default=None)

        cells = {key: largest(key) for key in ("outputs", "gradient", "peft", "generation")}
        differing = largest("round_trip")
        exact = "identical" if differing == 0 else f"{differing} differ"
        found = {"family": family, "checkpoints": len(own), "round_trip": exact, **cells, "each": own}
        yield {key: value for key, value in found.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one checkpoint a family")
    parser.add_argument("--out", type=Path, help="folder for families.json")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES), help="only these")
    args = parser.parse_args()
    rows = list(measure(args.family, quick=args.quick))
    publish("families", {"golden": len(rows)}, list(worst(rows)), COLUMNS, args.out)


if __name__ == "__main__":
    main()
