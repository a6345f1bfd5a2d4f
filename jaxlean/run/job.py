"""A job as a program: from a config to the one jitted step, over arrays or over shapes alone.

`finetune` makes the step of arrays that lie on its devices; `outline` makes the very same of shapes, for devices that
may not be here: what it compiles to is what the run would take.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxlean import codec, tree
from jaxlean.adapt import lora, vocabulary
from jaxlean.adapt.quantize import quantize
from jaxlean.config import RunConfig
from jaxlean.data import columns
from jaxlean.errors import ConfigError
from jaxlean.hub import compressed
from jaxlean.hub import load as hub
from jaxlean.hub.families import sees
from jaxlean.hub.files import locate, read_json
from jaxlean.hub.head import is_head, known_labels
from jaxlean.hub.load import Model
from jaxlean.models.config import ACTIVATIONS
from jaxlean.models.convnet import ACTIVATIONS as OF_CONVNETS
from jaxlean.models.convolution import is_statistic
from jaxlean.models.cpu import hold
from jaxlean.models.quantized import Matmuls
from jaxlean.run.image import image_of
from jaxlean.run.init_from import with_adapter, with_start
from jaxlean.run.losses import loss_of, said_by_teacher
from jaxlean.run.match import inside_of_teacher
from jaxlean.run.merge import labels_of
from jaxlean.run.student import from_teacher
from jaxlean.run.vocabulary import grown, with_new_tokens
from jaxlean.train.diloco import (
    DilocoState,
    init_replicas,
    make_inner_step,
    make_outer_step,
    outer_optimizer,
    replica_shardings,
)
from jaxlean.train.distill import INSIDE
from jaxlean.train.optimizer import optimizer
from jaxlean.train.step import TrainState, init_state, make_step
from jaxlean.xla.mesh import batch_sharding, num_batch_shards, place, replicated
from jaxlean.xla.remat import Policy
from jaxlean.xla.spread import put

Build = Callable[[Policy], jax.stages.Wrapped]
# What `train.remat` may name, before it is known what kind of model there is.
ANY_ACTIVATION = (*ACTIVATIONS, *OF_CONVNETS)
State = TrainState | DilocoState
AnyState = TypeVar("AnyState", TrainState, DilocoState)


@dataclass(frozen=True)
class Outline:
    """A job's step over shapes.

    Args:
        model: `model.params` are shapes, adapters included.
        build: policy -> the jitted step.
        outer: the jitted step `state -> state` between rounds, once in `train.diloco.every` steps; None where there are
            no rounds.
        state, frozen, batch: arguments of the step, as `jax.ShapeDtypeStruct`s with shardings.
        rows: sequences of one step, over all devices.
        length: tokens of a sequence.
    """

    model: Model
    build: Build
    outer: jax.stages.Wrapped | None
    state: State
    frozen: tree.Tree
    batch: dict[str, jax.ShapeDtypeStruct]
    rows: int
    length: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the step."""
        return self.state, self.frozen, self.batch


def outline(config: RunConfig, mesh: jax.sharding.Mesh, *, length: int, num_steps: int = 1000) -> Outline:
    """The step of a job on a mesh, without its weights, its data or its devices.

    Args:
        config: as `finetune` takes it.
        mesh: of devices that are here, or that a program is only compiled for.
        length: tokens of a sequence.
        num_steps: of the run; the learning rate's schedule is part of the step.

    Raises:
        UserError: as `finetune` before it trains.
    """
    config = resolved(config)
    check_rounds(config, mesh)
    model = base(config, mesh, shapes=True)
    params = jax.eval_shape(lambda p: adapt(config, model, p, shapes=True)[0], model.params)
    trains = trains_of(config, model)
    where = place(mesh)
    params = tree.map_with_path(
        lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(path, tuple(x.shape))), params
    )
    model = model.with_params(params)
    trainable, frozen = tree.split(params, trains)
    transform = optimizer(config.train, num_steps, trainable, ratio=lora.learning_rate_ratios(config.lora))
    start, shardings = starting(config, trainable, transform, mesh)
    shapes = jax.eval_shape(start, trainable)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    rows = rows_of_step(config, mesh)
    return Outline(
        model,
        builder(config, model, mesh, transform, shardings),
        outer_step(config, mesh, shardings),
        state,
        hold(frozen),
        batch_shapes(config, rows, length, mesh, image_of(model)),
        rows,
        length,
    )


def resolved(config: RunConfig, *, labelled: bool = True, trains: bool = True) -> RunConfig:
    """The config with the columns and labels of its task filled in, from its data and the head of its model.

    Args:
        labelled: whether labels will be read from rows.
        trains: whether it will be trained with, so that its new tokens are to be known as well, and what the adapter
            that it starts from decides.

    Raises:
        UserError: the data do not tell them.
    """
    config = with_start(config) if trains else config
    if config.task in ("generate", "embed") or _path(config) is None:
        config = columns.resolve(config, labelled=labelled)
    else:
        config = columns.resolve(config, head_labels(config), labelled=labelled, images=sees(_settings(config)))
    return with_new_tokens(config)[0] if trains else config


def head_labels(config: RunConfig) -> list[str] | None:
    """The labels of the head that the model has for the task; None where it has none, or they have no names."""
    if config.task in ("generate", "embed") or _path(config) is None:
        return None
    if config.distill is not None and config.distill.teacher.adapter is not None:
        return labels_of(Path(config.distill.teacher.adapter))
    return known_labels(_settings(config), config.task)


def _path(config: RunConfig) -> str | None:
    """Of the model whose head says what the labels are: the teacher knows them, where there is one."""
    return config.model.path if config.distill is None else config.distill.teacher.path


def is_base_quantized(config: RunConfig) -> bool:
    """Whether the base's own files hold it in fewer bits, so that no format is left to choose."""
    if config.model.path is None:
        return False
    packed = _settings(config).get("quantization_config") or {}
    return packed.get("quant_method") == compressed.METHOD


def _settings(config: RunConfig) -> dict[str, Any]:
    path, named = _path(config), config.model if config.distill is None else config.distill.teacher
    assert path is not None
    return read_json(locate(path, revision=named.revision, weights=False) / "config.json")


def base(
    config: RunConfig, mesh: jax.sharding.Mesh, *, shapes: bool = False, say: Callable[[str], None] = lambda line: None
) -> Model:
    """The base: from files, with its new tokens, or from zero where the config has an architecture instead of a path.

    Args:
        config: resolved.
        shapes: shapes for parameters, no weights.
        say: prints a line.
    """
    wanted = config.model
    _check_student(config)
    if wanted.architecture is not None:
        if config.task != "generate":
            raise ConfigError(f"task: {config.task} starts from a trained encoder", fix="model.path instead")
        if wanted.path is not None or config.lora is not None:
            raise ConfigError("model.architecture starts from zero", fix="leave out model.path and set lora: null")
        if wanted.quantization != "none" or wanted.matmul != "default":
            raise ConfigError(
                "model.architecture: what trains from zero is neither quantized nor multiplied in fewer bits",
                fix="leave out model.quantization and model.matmul",
            )
        if wanted.tokenizer is None:
            raise ConfigError("pre-training needs a tokenizer", where="model.tokenizer")
        how: dict[str, Any] = {"tokenizer": wanted.tokenizer, "attention": wanted.attention}
        if shapes:
            return hub.initial_outline(wanted.architecture, wanted.dtype, mesh, **how)
        model = hub.initial(wanted.architecture, wanted.dtype, mesh, seed=config.seed, **how)
        # not transformers' defaults, which are those of Llama's tokenizer
        for key in {"bos_token_id", "eos_token_id", "pad_token_id"} - wanted.architecture.keys():
            model.hf_config[key] = getattr(model.tokenizer, key)
        return model

    def trains(path: str) -> bool:
        if config.lora is not None:
            return is_head(path)
        return config.train.trainable is None or any(re.search(rule, path) for rule in config.train.trainable)

    if config.distill is not None and config.distill.student is not None:
        return from_teacher(config, mesh, trains=trains, shapes=shapes, say=say, **head_of(config))
    if wanted.path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    # PiSSA takes its start out of the full kernels: `adapt` quantizes what is left
    quantization = "none" if is_pissa(config) else wanted.quantization
    model = (hub.outline if shapes else hub.load)(
        wanted.path, wanted.dtype, mesh, revision=wanted.revision, tokenizer=wanted.tokenizer, trains=trains,
        quantization=quantization, matmul=matmul_of(config), attention=wanted.attention, **head_of(config),
    )  # fmt: skip
    return grown(config, model, shapes=shapes, say=say)


def is_base_drawn(config: RunConfig) -> bool:
    """Whether a part of the base is drawn by the run's seed: a head for a task, new tokens, or all of it."""
    new = config.model.new_tokens is not None and config.model.new_tokens_init == "random"
    return config.task != "generate" or config.model.architecture is not None or new


def _check_student(config: RunConfig) -> None:
    """Refuse a config that distils and names no student, or two."""
    if config.distill is None:
        return
    named = {
        "model.path": config.model.path, "model.architecture": config.model.architecture,
        "distill.student": config.distill.student,
    }  # fmt: skip
    found = [name for name, value in named.items() if value is not None]
    if len(found) != 1:
        raise ConfigError(
            "there are two students" if found else "there is no student", got=" and ".join(found) or None,
            wanted="model.path (a checkpoint), or distill.student (a part of the teacher), or model.architecture",
        )  # fmt: skip


def head_of(config: RunConfig) -> dict[str, Any]:
    """What `hub.load` is to be told of the head that a task puts on an encoder, beside all else."""
    if config.task == "generate":
        return {"task": "generate"}
    return {"task": config.task, "labels": config.data.labels, "seed": config.seed}


def matmul_of(config: RunConfig) -> Matmuls:
    """How the layers' kernels are multiplied.

    Raises:
        ConfigError: adapters that are rounded with their base, or keep its zeros, and another way to multiply.
    """
    if config.lora is None or not (config.lora.quantization_aware or config.train.keep_zeros):
        return config.model.matmul
    if config.model.matmul != "default":
        what = "lora.quantization_aware" if config.lora.quantization_aware else "train.keep_zeros with adapters"
        raise ConfigError(f"{what} says how kernels are multiplied", fix="leave out model.matmul")
    return "aware" if config.lora.quantization_aware else "sparse"


def form_of(config: RunConfig) -> dict[str, str]:
    """What an adapter's file says of the base that it was trained over (`hub.adapter.trained_over`)."""
    matmul = matmul_of(config)
    if config.lora is None or matmul not in ("aware", "sparse"):
        return {}
    return {"matmul": matmul} | ({} if matmul == "sparse" else {"quantization": config.model.quantization})


def is_pissa(config: RunConfig) -> bool:
    """Whether adapters start from the kernels' principal directions."""
    return config.lora is not None and config.lora.init_lora_weights == "pissa"


def adapt(
    config: RunConfig, model: Model, params: tree.Tree, *, shapes: bool = False
) -> tuple[tree.Tree, Callable[[str], bool]]:
    """(the parameters of the model, with adapters if the config says so; path -> whether it trains).

    Args:
        shapes: only those count: where adapters start from is not computed.
    """
    if config.lora is not None and config.lora.init_from is not None:
        config = with_start(config)
        trains = trains_of(config, model)
        params = with_adapter(config, model, params, trains=trains, form=form_of(config), shapes=shapes)
        vocabulary.check_apart(params, [path.removesuffix(".lora_a") for path in tree.flatten(params)])
    elif config.lora is not None:
        settings = config.lora.model_copy(update={"init_lora_weights": "default"}) if shapes else config.lora
        modules = lora.targets(
            params, config.lora.target_modules, model.names.modules(codec.kernels(tree.flatten(params))),
            apart=model.family.apart,
        )  # fmt: skip
        modules = [module for module in modules if not is_head(module)]  # it trains whole
        vocabulary.check_apart(params, modules)
        key = jax.random.fold_in(jax.random.key(config.seed), 1)
        params = lora.add(params, modules, settings, key)
        if is_pissa(config) and config.model.quantization != "none":
            params = quantize(params, config.model.quantization)
    return params, trains_of(config, model)


def placed(config: RunConfig, model: Model, mesh: jax.sharding.Mesh) -> tuple[Model, Callable[[str], bool]]:
    """(the model with adapters if the config says so, on the mesh; path -> whether it trains)."""
    params, trains = adapt(config, model, model.params)
    where = place(mesh)
    params = tree.map_with_path(lambda path, x: put(x, where(path, tuple(x.shape))), params)
    return model.with_params(params), trains


def trains_of(config: RunConfig, model: Model) -> Callable[[str], bool]:
    """path -> whether it trains: with LoRA adapters, new tokens, the head, and what the checkpoint does not have."""
    if config.lora is not None:
        return lambda path: lora.is_adapter(path) or vocabulary.is_row(path) or is_head(path) or path in model.drawn
    if config.train.trainable is None:
        return lambda path: not is_statistic(path) and path != vocabulary.IDS
    rules = [(pattern, True) for pattern in config.train.trainable]
    chosen = tree.match(rules, tree.flatten(model.params), what="train.trainable", default=False)
    # new tokens are asked for apart, and would be noise if they stayed as they are
    return lambda path: vocabulary.is_row(path) or (chosen[path] and path != vocabulary.IDS)


def builder(
    config: RunConfig,
    model: Model,
    mesh: jax.sharding.Mesh,
    transform: optax.GradientTransformation,
    shardings: State,
) -> Build:
    """policy -> the jitted step, whose state lies as `shardings` say."""

    def build(remat: Policy) -> jax.stages.Wrapped:
        loss = loss_of(config, model, mesh, remat)
        if isinstance(shardings, DilocoState):
            return make_inner_step(loss, transform, mesh, seed=config.seed, shardings=shardings)
        return make_step(loss, transform, seed=config.seed, shardings=shardings)

    return build


def outer_step(config: RunConfig, mesh: jax.sharding.Mesh, shardings: State) -> jax.stages.Wrapped | None:
    """The jitted `state -> state` that ends a round of replicas that train by themselves; None where none do."""
    if not isinstance(shardings, DilocoState):
        return None
    return make_outer_step(_outer(config), mesh, shardings, config.train.diloco.compression)


def _outer(config: RunConfig) -> optax.GradientTransformation:
    return outer_optimizer(config.train.diloco.outer_learning_rate, config.train.diloco.outer_momentum)


def check_rounds(config: RunConfig, mesh: jax.sharding.Mesh, num_steps: int | None = None) -> None:
    """Refuse `train.sync: diloco` where it would be something else; `num_steps` of the run, where that is known.

    Raises:
        ConfigError: there is one replica, or the run ends before the first exchange.
    """
    if config.train.sync != "diloco":
        return
    num, every = mesh.shape["data"], config.train.diloco.every
    if num == 1:
        raise ConfigError(
            "train.sync: diloco has nothing to synchronise: there is one replica",
            got=f"mesh.data=1 on {mesh.size} device" + "s" * (mesh.size > 1),
            wanted="replicas along the mesh's axis data, 2 or more",
            fix="train.sync=step, or more devices",
        )
    if num_steps is not None and every > num_steps:
        raise ConfigError(
            "train.diloco.every: the run ends before the first exchange",
            got=f"an exchange every {every:,} steps, {num_steps:,} steps in all",
            fix="a smaller train.diloco.every, so that there are several",
        )


def compile_step(step: jax.stages.Wrapped, *arguments: Any) -> tuple[jax.stages.Compiled, Any]:
    """(the compiled step, the jaxpr that it was compiled from)."""
    traced = step.trace(*arguments)
    return traced.lower().compile(), traced.jaxpr.jaxpr


def first_state(
    config: RunConfig, trainable: tree.Tree, transform: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> State:
    """The first state on the mesh: moments where the parameters they belong to lie, all else on every device."""
    start, where = starting(config, trainable, transform, mesh)
    # copied: the step donates its state, and the caller's tree must stay alive
    return jax.jit(lambda t: start(jax.tree.map(jnp.copy, t)), out_shardings=where)(trainable)


def starting(
    config: RunConfig, trainable: tree.Tree, transform: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> tuple[Callable[[tree.Tree], State], State]:
    """(what trains -> the first state, where each leaf of it lies); `trainable` is on the mesh."""

    def one(trainable: tree.Tree) -> TrainState:
        return init_state(trainable, transform)

    def replicas(trainable: tree.Tree) -> DilocoState:
        return init_replicas(one(trainable), _outer(config), mesh.shape["data"])

    where = state_shardings(jax.eval_shape(one, trainable), trainable, mesh)
    if config.train.sync == "step":
        return one, where
    common = state_shardings(jax.eval_shape(replicas, trainable), trainable, mesh)
    return replicas, replica_shardings(where, common)


def state_shardings(shapes: AnyState, trainable: tree.Tree, mesh: jax.sharding.Mesh) -> AnyState:
    """Where each leaf of a state lies that has no dim of replicas.

    Args:
        shapes: of the state.
        trainable: what trains, on the mesh (arrays, or shapes with shardings).
    """
    parameters = tree.flatten(trainable)

    def beside(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
        # A moment's key path ends in its parameter's. One of 8 bits has two arrays, of which the one with a number for
        # each block has fewer columns; a factored one (adafactor) has fewer dims, and is small enough to be everywhere.
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        for start in range(len(names)):
            parameter = parameters.get(".".join(names[start:]))
            if parameter is not None and parameter.ndim == leaf.ndim:
                split = ((n, axis) for n, axis in zip(leaf.shape, parameter.sharding.spec, strict=False) if axis)
                if all(n % mesh.shape[axis] == 0 for n, axis in split):
                    return parameter.sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(beside, shapes)


def rows_of_step(config: RunConfig, mesh: jax.sharding.Mesh) -> int:
    """Sequences of one step, over all devices and microbatches."""
    train = config.train
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * num_batch_shards(mesh)


def copies(state: State, mesh: jax.sharding.Mesh) -> float:
    """How many devices hold, and update, each trained number, on average."""
    leaves = jax.tree.leaves(state.trainable)
    local = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return mesh.size * local / max(sum(math.prod(x.shape) for x in leaves), 1)


def tokens_at_a_time(config: RunConfig, rows: int, length: int, mesh: jax.sharding.Mesh) -> int:
    """Positions of one microbatch on one device, of a step of so many rows."""
    return rows * length // config.train.gradient_accumulation_steps // num_batch_shards(mesh) // mesh.shape["context"]


def batch_shapes(
    config: RunConfig, rows: int, length: int, mesh: jax.sharding.Mesh, image: tuple[int, ...] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """The step's batch: [microbatches, rows of each, length].

    Args:
        image: of a model of images, the shape of one; its pixels are one line of a row.
    """
    parts, where = config.train.gradient_accumulation_steps, batch_sharding(mesh, leading=1)
    if image is not None:
        each = (parts, rows // parts)
        return {
            "pixels": jax.ShapeDtypeStruct((*each, math.prod(image)), jnp.float32, sharding=where),
            "labels": jax.ShapeDtypeStruct((*each, 1), jnp.int32, sharding=where),
        }
    dtypes = {"tokens": jnp.int32, "loss_mask": jnp.bool_, "segments": jnp.int32, "positions": jnp.int32}
    if config.task != "generate":
        del dtypes["loss_mask"]
        dtypes["labels"] = jnp.int32
        if config.task == "classify" and isinstance(config.data.text_column, list):
            dtypes["token_types"] = jnp.int32
    shape = (parts, rows // parts, length)
    shapes = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in dtypes.items()}
    for name, (classes, dtype) in said_by_teacher(config).items():
        shapes[name] = jax.ShapeDtypeStruct((*shape, classes), dtype, sharding=where)
    for name, inside in inside_of_teacher(config).items():
        shapes[name] = jax.ShapeDtypeStruct((*shape, *inside), INSIDE, sharding=where)
    return shapes
