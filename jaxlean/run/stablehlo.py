"""A model as a program that jax runs without us: StableHLO for any number of rows, its numbers beside it, a script."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub.load import Model
from jaxlean.models.cpu import from_bits
from jaxlean.run.generate import stop_ids

PROGRAM, NUMBERS, SCRIPT = "model.stablehlo", "params.npz", "run.py"
_PLATFORMS = ("cpu", "cuda", "tpu")

_RUN = '''"""Completes token ids with nothing but jax and numpy: python run.py 12 45 7"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax import export

LENGTH, VOCABULARY, STOP = {length}, {vocabulary}, {stop}  # tokens of a row; ids are below; they end a text
here = Path(__file__).parent
program = jax.jit(export.deserialize(bytearray((here / "model.stablehlo").read_bytes())).call)
params = dict(np.load(here / "params.npz"))
tokens = [int(word) if word.isdigit() else -1 for word in sys.argv[1:]]
if not 0 < len(tokens) < LENGTH or not all(0 <= token < VOCABULARY for token in tokens):
    sys.exit(f"wanted: 1 to {{LENGTH - 1}} token ids below {{VOCABULARY}}, from the tokenizer beside this script")
for at in range(len(tokens), LENGTH):
    row = tokens + [0] * (LENGTH - at)  # what stands behind the last one changes nothing before it
    logits = program(params, np.array([row], np.int32))  # any number of rows -> float32 [rows, LENGTH, VOCABULARY]
    tokens.append(int(logits[0, at - 1].argmax()))
    if tokens[-1] in STOP:
        break
print(*tokens)
'''


def write_stablehlo(model: Model, folder: Path, *, length: int) -> None:
    """Write `model.stablehlo`, `params.npz` and, of a decoder, `run.py`; what is written is run and compared.

    The program takes `{path: array}` of the parameters (bfloat16 as the uint16 of its bits, which numpy can hold), and
    int32 tokens [batch, length]; of an encoder also int32 segments, 0 at padding. It gives float32 logits, or vectors.

    Args:
        model: a decoder or an encoder of text, no adapters beside it.
        folder: there already.
        length: tokens of a row.

    Raises:
        ModelError: a model of images; or the program does not give what the model gives.
    """
    if model.config.inputs != ("tokens",):
        raise ModelError(
            f"{model.family.model_type} is not exported to StableHLO", got=f"inputs {', '.join(model.config.inputs)}",
            wanted="a model of text",
        )  # fmt: skip
    causal = model.config.causal
    numbers = {path: _as_numpy(leaf) for path, leaf in tree.flatten(model.params).items()}
    (batch,) = jax.export.symbolic_shape("batch")
    rows = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in numbers.items()}

    def run(params: dict[str, jax.Array], tokens: jax.Array, *segments: jax.Array) -> jax.Array:
        module: Any = nnx.merge(model.graph, tree.unflatten({path: from_bits(x) for path, x in params.items()}))
        beside = {"segments": segments[0]} if segments else {}
        return module.without_kernels()(tokens, **beside).astype(jnp.float32)

    inputs = (rows,) if causal else (rows, rows)
    exported = jax.export.export(jax.jit(run), platforms=_PLATFORMS)(shapes, *inputs)
    (folder / PROGRAM).write_bytes(exported.serialize())
    np.savez(folder / NUMBERS, **numbers)  # type: ignore[arg-type]
    if causal:
        stop = stop_ids(model) if model.tokenizer is not None else []
        text = _RUN.format(length=length, vocabulary=model.config.vocab_size, stop=stop)
        (folder / SCRIPT).write_text(text, encoding="utf-8")
    _compare(model, folder, length)


def _compare(model: Model, folder: Path, length: int) -> None:
    program = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
    with np.load(folder / NUMBERS) as file:
        numbers = {name: file[name] for name in file.files}
    vocabulary = model.config.vocab_size
    for rows in (1, 3):
        tokens = np.random.default_rng(rows).integers(0, vocabulary, (rows, length), np.int32)
        segments = () if model.config.causal else (np.ones((rows, length), np.int32),)
        got, wanted = np.asarray(program.call(numbers, tokens, *segments)), np.asarray(model(tokens))
        # another program adds up in another order: of bfloat16 that is its last bit, here and there
        away = np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-30)
        if not away < (1e-4 if model.dtype == jnp.float32 else 2e-2):
            raise ModelError(
                "the exported program does not give what the model gives", where=folder, got=f"off by {away:.2g} of 1"
            )


def _as_numpy(leaf: jax.Array) -> np.ndarray:
    host = np.asarray(jax.device_get(leaf))
    return host.view(np.uint16) if host.dtype == jnp.bfloat16 else host
