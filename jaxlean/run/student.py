"""A student made of its teacher: some of its layers, or all of them with less in each.

Layers spread evenly, the first and the last among them, is what DistilBERT began with (arXiv 1910.01108, section 3) and
what deep students of shallow copies do best with (arXiv 2010.13002). A narrower student has those neurons and heads
that do most on the calibration rows (Minitron, arXiv 2407.14679), which make up for the others by least squares: at
half of the parameters it starts much nearer to its teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import tree
from jaxlean.compress import structured
from jaxlean.compress.sizes import num_params, sizes
from jaxlean.config import RunConfig, StudentSection, TeacherSection
from jaxlean.errors import ConfigError
from jaxlean.hub import load as hub
from jaxlean.hub.adapter import trained_over
from jaxlean.hub.load import Model
from jaxlean.hub.shape import reshaped
from jaxlean.models.build import abstract
from jaxlean.run.calibration import calibration_batches
from jaxlean.run.generate import chat_template
from jaxlean.run.inputs import tokenizer_of
from jaxlean.run.merge import load_adapted, merged
from jaxlean.xla.mesh import make_mesh, place
from jaxlean.xla.spread import put


def chosen_layers(section: StudentSection, num: int) -> list[int]:
    """The teacher's layers that the student gets, of `num`.

    Raises:
        ConfigError: it has none of that number, or not so many.

    >>> chosen_layers(StudentSection(num_layers=3), 6)
    [0, 2, 5]
    """
    if section.layers is not None:
        if section.layers[-1] >= num:
            raise ConfigError(
                "the teacher has no such layer", where="distill.student.layers", got=section.layers[-1],
                wanted=f"numbers from 0 to {num - 1}",
            )  # fmt: skip
        return list(section.layers)
    assert section.num_layers is not None, "one of the two says which"
    if section.num_layers > num:
        raise ConfigError(
            "the teacher has fewer layers than its student is to have", where="distill.student.num_layers",
            got=section.num_layers, wanted=f"at most {num}",
        )  # fmt: skip
    if section.num_layers == 1:
        return [0]
    return [int(number) for number in np.round(np.linspace(0, num - 1, section.num_layers))]


def shallower(model: Model, layers: Sequence[int]) -> Model:
    """The model of some of its layers (`compress.structured.depth`), on the mesh that it lies on.

    Args:
        model: its kernels plain; its parameters may be shapes with shardings.
        layers: their numbers, ascending.

    Raises:
        ConfigError, ModelError: as of `depth`.
    """
    smaller = model

    def fewer(params: tree.Tree) -> tree.Tree:
        nonlocal smaller
        smaller = structured.depth(model.with_params(params), layers)
        return smaller.params

    leaf = jax.tree.leaves(model.params)[0]
    assert isinstance(leaf.sharding, jax.sharding.NamedSharding), "parameters lie on a mesh"
    assert isinstance(leaf.sharding.mesh, jax.sharding.Mesh)
    where = place(leaf.sharding.mesh)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        params = tree.map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(path, tuple(x.shape))),
            jax.eval_shape(fewer, model.params),
        )
    else:
        params = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, tuple(x.shape))), fewer(model.params))
    return smaller.with_params(params)


def load_teacher(
    teacher: TeacherSection,
    mesh: jax.sharding.Mesh,
    *,
    trains: Callable[[str], bool] = lambda path: False,
    shapes: bool = False,
    **how: Any,
) -> Model:
    """The teacher with its adapter, if it has one, folded in.

    Args:
        mesh: that it lies on.
        trains: of what a student is made of: path -> whether that will train.
        shapes: shapes for parameters, no weights.
        how: `dtype`, `attention`, the head of the task ..., as of `hub.load.load`.

    Raises:
        ConfigError: a quantized teacher with an adapter that is to be folded in.
        ModelError: there is no such model, or no adapter of it.
    """
    if shapes:
        return hub.outline(teacher.path, mesh=mesh, revision=teacher.revision, trains=trains, **how)
    form = trained_over(Path(teacher.adapter)) if teacher.adapter is not None else {}
    model = hub.load(teacher.path, mesh=mesh, revision=teacher.revision, trains=trains, **(how | form))
    if teacher.adapter is None:
        return model
    adapted = load_adapted(model, Path(teacher.adapter))
    adapted.drawn = frozenset()  # of a head it brings what it learned
    if how.get("quantization", "none") != "none" and not form:
        return adapted  # it stays beside kernels that cannot take it in
    where, whole = place(mesh), merged(adapted)
    return whole.with_params(
        tree.map_with_path(lambda path, x: jax.device_put(x, where(path, tuple(x.shape))), whole.params)
    )


def from_teacher(
    config: RunConfig,
    mesh: jax.sharding.Mesh,
    *,
    trains: Callable[[str], bool],
    shapes: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **head: Any,
) -> Model:
    """The student that `distill.student` describes, before it has learned anything of its own.

    Args:
        config: resolved.
        trains: path -> whether that will train; such is held in float32.
        shapes: shapes for parameters, no weights.
        say: prints a line.
        head: as of `job.head_of`.
    """
    assert config.distill is not None
    section = config.distill.student
    assert section is not None
    named = config.model
    # calibration visits one layer after another, on one device
    there = mesh if shapes or section.params is None else make_mesh(devices=jax.local_devices()[:1])
    teacher = load_teacher(
        config.distill.teacher, there, trains=trains, shapes=shapes, dtype=named.dtype, tokenizer=named.tokenizer,
        matmul=named.matmul if section.params is None else "default", attention=named.attention, **head,
    )  # fmt: skip
    if section.params is not None:
        asked: dict[str, Any] = sizes(teacher, section.params, section.method)
        config_of_student = structured.narrowed(teacher, **asked)
        num, of = num_params(config_of_student), num_params(teacher.config)
        said = ", ".join(f"{name} {size:,}" for name, size in asked.items())
        say(f"student: {said}: {num:,} of the teacher's {of:,} parameters ({num / of:.1%})")
        student = (
            _narrow_outline(teacher, config_of_student, mesh) if shapes else _narrower(config, teacher, asked, mesh)
        )
        return replace(student, matmul=named.matmul).with_params(student.params)
    num = getattr(teacher.config, "num_layers", 0)
    layers = chosen_layers(section, num)
    say(f"student: layers {', '.join(map(str, layers))} of the teacher's {num}")
    return shallower(teacher, layers)


def _narrower(config: RunConfig, teacher: Model, asked: dict[str, Any], mesh: jax.sharding.Mesh) -> Model:
    """The teacher with those neurons and heads that do most on the calibration rows, on another mesh."""
    tokenizer, template = tokenizer_of(teacher), chat_template(config.model)
    if template is not None:
        tokenizer.chat_template = template
    batches = calibration_batches(config, tokenizer, vocab_size=teacher.config.vocab_size)
    student, _ = structured.width(teacher, batches, **asked)
    where = place(mesh)
    params = tree.map_with_path(lambda path, x: put(np.asarray(x), where(path, tuple(x.shape))), student.params)
    return student.with_params(params)


def _narrow_outline(teacher: Model, config: Any, mesh: jax.sharding.Mesh) -> Model:
    """What `_narrower` gives, with shapes for parameters."""
    dtypes, where = {path: leaf.dtype for path, leaf in tree.flatten(teacher.params).items()}, place(mesh)

    def shape(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtypes[path], sharding=where(path, tuple(leaf.shape)))

    params = tree.map_with_path(shape, abstract(config)[1])
    return replace(teacher, config=config, hf_config=reshaped(teacher, config)).with_params(params)
