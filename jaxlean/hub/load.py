"""`jaxlean.load`: a Hugging Face model as a parameter tree and a function."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean import codec, tree
from jaxlean.adapt import quantize
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub import compressed
from jaxlean.hub.encode import encode
from jaxlean.hub.families import family_of
from jaxlean.hub.family import Family
from jaxlean.hub.files import locate, read_json
from jaxlean.hub.head import initial_head
from jaxlean.hub.names import Names
from jaxlean.hub.read import is_bare, read_params, stored_tensors
from jaxlean.hub.sentence import read_sentence
from jaxlean.hub.task import Task, is_headless, not_in_files, with_head, with_image_head
from jaxlean.models import attention as attentions
from jaxlean.models.build import abstract
from jaxlean.models.quantized import Matmuls
from jaxlean.xla.mesh import make_mesh, place
from jaxlean.xla.precision import check_matmul, compute_dtype, parameter_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass
class Model:
    """A loaded model.

    `params` is a plain nested dict of jax arrays that you may replace; `graph` is what `nnx.merge(graph, params)` needs
    to make them a Flax module again; calling the model runs it under `jax.jit`.
    """

    family: Family
    config: Any
    hf_config: dict[str, Any] = field(repr=False)
    params: tree.Tree = field(repr=False)
    graph: nnx.GraphDef = field(repr=False)
    dtype: Any
    folder: Path | None
    tokenizer_path: str | None = None
    matmul: Matmuls = "default"
    attention: attentions.Backend = "plain"
    bare: bool = False  # its tensors' names lack the family's prefix (`hub.names`)
    drawn: frozenset[str] = frozenset()  # parameters of its head that no file has: they know nothing yet

    def __call__(
        self,
        inputs: Any,
        *more: Any,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
    ) -> jax.Array:
        """What the model is for, as float32.

        A decoder gives logits [batch, length, vocab] of the next token. An encoder gives logits [labels] of each token,
        or those of a text, or its vector [hidden], which stand at its first token. An encoder of images gives logits
        [batch, labels], or hidden states [batch, 1 + patches, hidden] where it has no classifier; CLIP gives
        [images, texts].

        Args:
            inputs: int32 tokens [batch, length], or float32 pixels [batch, height, width, channels].
            more: pixels, of a model that has both.
            positions, segments, token_types: of tokens, as of `models.decoder.Decoder.__call__` and
                `models.encoder.Encoder.hidden`.
        """
        spread = len(jax.tree.leaves(self.params)[0].sharding.device_set) > 1
        dtypes = {"tokens": jnp.int32, "pixels": jnp.float32}
        kinds = zip(self.config.inputs, (inputs, *more), strict=True)
        beside = {"positions": positions, "segments": segments, "token_types": token_types}
        given = {name: jnp.asarray(x, jnp.int32) for name, x in beside.items() if x is not None}
        return _forward(self.graph, spread, self.params, [jnp.asarray(x, dtypes[kind]) for kind, x in kinds], given)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> np.ndarray:
        """Texts -> float32 [texts, hidden] vectors, or [texts, labels] logits (`jaxlean.hub.encode`)."""
        return encode(self, texts, batch_size=batch_size, max_length=max_length)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that it was made for."""
        said = read_sentence(self.folder).max_length if self.folder is not None and is_headless(self.config) else None
        return min(said or self.tokenizer.model_max_length, self.config.max_position_embeddings)

    @cached_property
    def names(self) -> Names:
        """What its parameters are called in files."""
        return Names(self.family, self.config, bare=self.bare)

    def with_params(self, params: tree.Tree) -> "Model":
        """The same model over other parameters, whose adapters (if any) are attached.

        Raises:
            ModelError: a parameter is missing, extra or of the wrong shape.
        """
        graph, shapes = abstract(self.config, params, dtype=self.dtype, matmul=self.matmul, attention=self.attention)
        tree.check(params, shapes, where=self.folder)
        other = replace(self, params=params, graph=graph)
        if "tokenizer" in vars(self):  # read already, and perhaps given another chat template
            vars(other)["tokenizer"] = self.tokenizer
        return other

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer beside the model (or the one asked for), read on first use."""
        path = self.tokenizer_path or (str(self.folder) if self.folder is not None else None)
        if path is None:
            raise ModelError("the model has no tokenizer", fix="set model.tokenizer")
        found = load_tokenizer(path)
        if getattr(self.config, "learned_positions", 0):  # a token beyond them has no place
            found.model_max_length = min(found.model_max_length, self.config.max_position_embeddings)
        return found


def load(
    path_or_id: str | Path,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    trains: Callable[[str], bool] = lambda path: False,
    quantization: Literal["none", "int8", "nf4"] = "none",
    matmul: Matmuls = "default",
    attention: str = "auto",
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Model:
    """Load a model from a folder or the Hugging Face hub.

    Args:
        path_or_id: folder with `config.json` and safetensors, or a hub id.
        dtype: what matrices are held and multiplied in; auto is float32 on CPU, bfloat16 elsewhere.
        mesh: devices to place the parameters on; default: all, each with a copy of the parameters.
        revision: branch, tag or commit on the hub.
        tokenizer: folder or id of another tokenizer.
        trains: path -> whether the parameter will be trained; such are held in float32.
        quantization: the format that the kernels of the layers are held in (`adapt.quantize`), rounded while they are
            read: the wide model is never in memory.
        matmul: how the layers' kernels are multiplied (`models.quantized`).
        attention: its back end (`models.attention`); auto takes the fastest that runs on these devices.
        task: of an encoder: `classify`, `tag` or `embed`; default: what it was saved for.
        labels: of a classifier, in the order of their ids; default: those that it was saved with.
        seed: draws a classifier that the files do not have for this task and these labels (`Model.drawn`).

    Returns:
        the model. `model(tokens)` gives float32 logits, or vectors.

    Raises:
        ConfigError: a quantized matrix that would train, or a `matmul` or `attention` that the hardware does not have.
        ModelError: names the file or tensor that is missing or wrong, or the families that are supported.
    """
    folder = locate(str(path_or_id), revision=revision)
    mesh = mesh if mesh is not None else make_mesh()
    raw = read_json(folder / "config.json")
    model = _described(
        raw, folder / "config.json", dtype, mesh, tokenizer=tokenizer, trains=trains, quantization=quantization,
        matmul=matmul, attention=attention, task=task, labels=labels,
    )  # fmt: skip
    stored = stored_tensors(folder, model.family)
    in_files = Names(model.family, model.config, bare=is_bare(stored, model.family))
    scheme = compressed.read_scheme(raw, folder / "config.json")
    model.drawn = not_in_files(tree.flatten(model.params), in_files, stored, raw=raw, labels=labels)
    params = read_params(
        folder,
        in_files,
        tree.split(abstract(model.config, dtype=model.dtype)[1], lambda path: path not in model.drawn)[0],
        dtype=parameter_dtype(model.dtype, trains),
        place=place(mesh),
        form=lambda path: _form(path, quantization, scheme, in_files)[0],
        scheme=scheme,
    )
    new = tree.split(model.params, lambda path: path in model.drawn)[0]
    head = initial_head(tree.flatten(new), seed=seed, std=getattr(model.config, "initializer_range", 0.02))
    # an encoder is written, and adapted, under the names that it has with the head of its task
    model.bare = is_headless(model.config) if hasattr(model.config, "head") else in_files.bare
    model.folder = folder
    return model.with_params(tree.merge(params, tree.unflatten(head)))


def outline(
    path_or_id: str | Path,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    trains: Callable[[str], bool] = lambda path: False,
    quantization: Literal["none", "int8", "nf4"] = "none",
    matmul: Matmuls = "default",
    attention: str = "auto",
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Model:
    """The model that `load` would give, with `jax.ShapeDtypeStruct`s for parameters: its weights need not be there.

    Args, errors: as `load`. The devices of the mesh may be ones that a program is only compiled for.
    """
    folder = locate(str(path_or_id), revision=revision, weights=False)
    mesh = mesh if mesh is not None else make_mesh()
    model = _described(
        read_json(folder / "config.json"), folder / "config.json", dtype, mesh, tokenizer=tokenizer, trains=trains,
        quantization=quantization, matmul=matmul, attention=attention, task=task, labels=labels,
    )  # fmt: skip
    model.folder = folder
    return model


def _described(
    raw: dict[str, Any],
    file: Path | str,
    dtype: Literal["auto", "float32", "bfloat16"],
    mesh: jax.sharding.Mesh,
    *,
    tokenizer: str | None,
    trains: Callable[[str], bool],
    quantization: Literal["none", "int8", "nf4"],
    matmul: Matmuls,
    attention: str,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
) -> Model:
    """A model by its config: shapes for parameters, each with its dtype and its place on the mesh."""
    family = family_of(raw.get("model_type"), where=file, settings=raw)
    raw = with_image_head(family, raw, task=task, labels=labels)
    hf = transformers_config(raw, file)
    _check_settings(family, hf, file)
    config, raw = with_head(
        family, family.config(hf), raw, task=task, labels=labels, num_labels=hf.num_labels,
        folder=file.parent if isinstance(file, Path) else None,
    )  # fmt: skip
    compute = compute_dtype(dtype)
    scheme = compressed.read_scheme(raw, file)
    if scheme is not None:
        _check_once(quantization, file)
        config = compressed.with_wide_layers(config, Names(family, config), scheme, _linear_layers(config))
        if scheme.activations and matmul in ("default", "aware"):
            matmul = "stored" if matmul == "default" else "aware_w8a8"
    if matmul == "aware" and scheme is None and quantization != "int8":
        raise ConfigError(
            "lora.quantization_aware: the base is not held in whole numbers", where=file,
            got=f"model.quantization={quantization}",
            fix="model.path: what jaxlean quantize wrote; or model.quantization=int8",
        )  # fmt: skip
    if matmul == "sparse" and (scheme is not None or quantization != "none"):
        raise ConfigError(
            "train.keep_zeros with adapters needs a base that is not quantized", where=file,
            fix="heal what jaxlean prune wrote, then quantize it: jaxlean export RUN OUT --format w8a8",
        )  # fmt: skip
    if matmul in ("int8", "fp8"):
        check_matmul(matmul, mesh.devices.flat[0])
    backend = _attention(attention, mesh, config, compute)
    held, where = parameter_dtype(compute, trains), place(mesh)
    leaves: dict[str, Any] = {}
    to_train = []
    for path, leaf in tree.flatten(abstract(config, dtype=compute)[1]).items():
        own = {path: jax.ShapeDtypeStruct(leaf.shape, held(path))}
        form, size = _form(path, quantization, scheme, Names(family, config))
        if form is not None:
            to_train += [path] if trains(path) else []
            module = path.removesuffix("kernel")
            own = {module + name: part for name, part in codec.shapes(leaf.shape, form, group_size=size).items()}
        leaves |= {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(p, x.shape)) for p, x in own.items()}
    _check_frozen(
        to_train, f"model.quantization={quantization}" if scheme is None else f"{compressed.METHOD} in {file}"
    )
    params = tree.unflatten(leaves)
    graph, shapes = abstract(config, params, dtype=compute, matmul=matmul, attention=backend)
    tree.check(params, shapes, where=file)
    bare = is_headless(config)
    return Model(family, config, raw, params, graph, compute, None, tokenizer, matmul, backend, bare)


def _linear_layers(config: Any) -> list[str]:
    return list(codec.kernels(tree.flatten(abstract(config)[1])))


def _form(
    path: str, quantization: Literal["none", "int8", "nf4"], scheme: compressed.Scheme | None, names: Names
) -> tuple[codec.Format | None, int | None]:
    """(the format that a parameter is held in, None where it is held wide; its group size)."""
    if not quantize.is_chosen(path):
        return None, None
    if scheme is None:
        return (None if quantization == "none" else quantization), None
    held = compressed.is_held(scheme, names, path.removesuffix(".kernel"), *(0,) * names.leading(path))
    return (scheme.form if held else None), scheme.group_size


def _check_once(quantization: str, file: object) -> None:
    if quantization != "none":
        raise ConfigError(
            "the model is quantized already", where=file, got=f"model.quantization={quantization}",
            fix="leave out model.quantization, or take the model as it was before",
        )  # fmt: skip


def _check_settings(family: Family, hf: Any, where: object) -> None:
    packed = (getattr(hf, "quantization_config", None) or {}).get("quant_method")
    if packed not in (None, "mxfp4", compressed.METHOD):
        raise ModelError(
            "a checkpoint that is quantized in a way that is not read", where=where, got=f"quant_method {packed}",
            wanted=f"plain safetensors, {compressed.METHOD} or mxfp4",
            fix="the wide model, with model.quantization=int8 or nf4",
        )  # fmt: skip
    for key, wanted in family.unsupported.items():
        if getattr(hf, key, wanted) not in (wanted, None):
            raise ModelError(
                f"a setting of {family.model_type} that is not supported: {key}", where=where, got=getattr(hf, key),
                wanted=wanted,
            )  # fmt: skip


def _attention(wanted: str, mesh: jax.sharding.Mesh, config: Any, dtype: Any) -> attentions.Backend:
    """One for all layers: of towers that would have different ones, the one that runs anywhere."""
    platform = mesh.devices.flat[0].platform
    found = {
        attentions.choose(
            wanted, platform=platform, dtype=dtype, head_dim=part.head_dim, softcap=part.attention_softcap,
            sinks=part.attention_sinks, causal=part.causal,
        )
        for part in config.parts
    }  # fmt: skip
    return found.pop() if len(found) == 1 else "block"


def _check_frozen(paths: list[str], said: str) -> None:
    if paths:
        raise ConfigError(
            "a quantized matrix cannot train",
            where=f"{paths[0]}" + (f" (and {len(paths) - 1} more)" if paths[1:] else ""),
            got=said,
            fix="train an adapter over it (a lora: section), or take the model wide (model.quantization=none)",
        )


def load_tokenizer(path_or_id: str) -> "PreTrainedTokenizerFast":
    """The tokenizer in a folder or on the hub. No code of theirs is run.

    Raises:
        ModelError: there is none, or its files cannot be read, or it is one that needs code of its own.
    """
    folder = locate(path_or_id, weights=False)
    from transformers import AutoTokenizer

    try:
        # said, since unsaid it would ask on the terminal
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise plain Exceptions for broken files
        there = any(file for kind in ("tokenizer*", "vocab*", "*.model") for file in folder.glob(kind))
        raise ModelError(
            "no tokenizer that can be read",
            where=folder,
            got=_first_line(error) if there else "no file of one",
            wanted="tokenizer.json and tokenizer_config.json",
            fix="set model.tokenizer to a folder or id that has one",
        ) from error
    _check_templates(tokenizer, folder)
    # what is too long `data.max_length` cuts or refuses; transformers would warn of indexing errors
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _check_templates(tokenizer: Any, folder: Path) -> None:
    """Each of several chat templates is written into a file of its name: that must not lead elsewhere."""
    for name in tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else ():
        if not re.fullmatch(r"[\w-][\w .-]*", name):
            raise ModelError(
                "a chat template whose name is no name", where=folder, got=repr(name), wanted="letters, digits, - and _"
            )


def initial(
    architecture: dict[str, Any],
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
    *,
    seed: int = 0,
    tokenizer: str | None = None,
    attention: str = "auto",
) -> Model:
    """A model that has learned nothing, from a Hugging Face config: for pre-training.

    Args:
        architecture: `model_type`, `hidden_size` ... as in a `config.json`.
        seed: draws the parameters.
        attention: as in `load`.

    Returns:
        the model; all its parameters are float32, since all of them will train.

    Raises:
        ModelError: the family is not supported, or the config is not valid.
    """
    model = initial_outline(architecture, dtype, mesh, tokenizer=tokenizer, attention=attention)

    @partial(jax.jit, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, model.params))
    def draw() -> tree.Tree:
        return nnx.to_pure_dict(nnx.split(model.config.build(dtype=model.dtype, rngs=nnx.Rngs(seed)))[1])

    return replace(model, params=draw())


def initial_outline(
    architecture: dict[str, Any],
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    mesh: jax.sharding.Mesh | None = None,
    *,
    tokenizer: str | None = None,
    attention: str = "auto",
) -> Model:
    """The model that `initial` would give, with `jax.ShapeDtypeStruct`s for parameters. Args, errors: as `initial`."""
    model = _described(
        architecture, "model.architecture", dtype, mesh if mesh is not None else make_mesh(), tokenizer=tokenizer,
        trains=lambda path: True, quantization="none", matmul="default", attention=attention,
    )  # fmt: skip
    return replace(model, hf_config=transformers_config(architecture, "model.architecture").to_dict())


def transformers_config(raw: dict[str, Any], where: object) -> Any:
    """The config with the defaults and translations of transformers."""
    from transformers import CONFIG_MAPPING

    # copied: transformers writes its translations into what it is given
    values = deepcopy({key: value for key, value in raw.items() if key != "model_type"})
    try:
        return CONFIG_MAPPING[raw["model_type"]](**values)
    except Exception as error:  # transformers checks configs with several libraries' exception types
        raise ModelError("the model's config is not valid", where=where, got=_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@partial(jax.jit, static_argnums=(0, 1))
def _forward(
    graph: nnx.GraphDef,
    spread: bool,
    params: tree.Tree,
    inputs: list[jax.Array],
    beside: dict[str, jax.Array],
) -> jax.Array:
    model = nnx.merge(graph, params)
    # a batch of any size, which nothing may divide: so no layout, and no kernel that jax cannot split without one
    return (model.without_kernels() if spread else model)(*inputs, **beside)
