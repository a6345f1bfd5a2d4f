"""A student made of its teacher: some of the layers, and all that stands around them.

Layers spread evenly, the first and the last among them, is what DistilBERT began with (arXiv 1910.01108, section 3) and
what deep students of shallow copies do best with (arXiv 2010.13002). A narrower student is a checkpoint like any other:
prune the teacher's width first, and name what comes out in `model.path`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import tree
from jaxlean.compress.structured import depth
from jaxlean.config import RunConfig, StudentSection, TeacherSection
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub import load as hub
from jaxlean.hub.adapter import trained_over
from jaxlean.hub.load import Model
from jaxlean.run.merge import load_adapted, merged
from jaxlean.train.match import HIDDEN, RELATED, Match, widths
from jaxlean.xla.mesh import make_mesh, place


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
    assert section.num_layers is not None, "the config checks this"
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
        smaller = depth(model.with_params(params), layers)
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
    assert config.distill.student is not None
    named = config.model
    teacher = load_teacher(
        config.distill.teacher, mesh, trains=trains, shapes=shapes, dtype=named.dtype, tokenizer=named.tokenizer,
        matmul=named.matmul, attention=named.attention, **head,
    )  # fmt: skip
    num = getattr(teacher.config, "num_layers", 0)
    layers = chosen_layers(config.distill.student, num)
    say(f"student: layers {', '.join(map(str, layers))} of the teacher's {num}")
    return shallower(teacher, layers)


# ---- what is alike in both


def match_of(config: RunConfig, student: Model) -> Match | None:
    """Which layers are to be alike, and in what; None where nothing of the kind is asked for.

    Args:
        config: resolved.
        student: the model that trains.

    Raises:
        ConfigError: a layer that one of the two has not, or hidden states of other widths.
        ModelError: a mixture of experts, or latent attention.
    """
    if config.distill is None or config.distill.match is None:
        return None
    section, teacher = config.distill.match, _teacher_config(config)
    ours = student.config
    for name, each in (("student", ours), ("teacher", teacher)):
        if each.experts is not None or each.latent is not None:
            raise ModelError(f"distill.match is not for experts and latent attention, which the {name} has")
    pairs = section.layers
    if pairs is None:
        made = config.distill.student
        of = made if made is not None else StudentSection(num_layers=min(ours.num_layers, teacher.num_layers))
        theirs = chosen_layers(of, teacher.num_layers)
        pairs = dict(zip(chosen_layers(StudentSection(num_layers=len(theirs)), ours.num_layers), theirs, strict=True))
    for which, numbers, num in (
        ("student", pairs.keys(), ours.num_layers), ("teacher", pairs.values(), teacher.num_layers)
    ):  # fmt: skip
        if not numbers or max(numbers) >= num:
            raise ConfigError(
                f"the {which} has no such layer", where="distill.match.layers", got=max(numbers, default=None),
                wanted=f"numbers from 0 to {num - 1}",
            )  # fmt: skip
    if section.hidden and section.hidden_loss != "cka" and ours.hidden_size != teacher.hidden_size:
        raise ConfigError(
            f"hidden states of other widths have no {section.hidden_loss}", where="distill.match.hidden_loss",
            got=f"{ours.hidden_size} of the student's, {teacher.hidden_size} of the teacher's",
            fix="distill.match.hidden_loss=cka, or distill.match.hidden=0 distill.match.attention=1: these compare any",
        )  # fmt: skip
    heads = math.gcd(ours.num_kv_heads, teacher.num_kv_heads)
    layers = tuple(sorted(pairs.items()))
    return Match(layers, section.hidden, section.attention, section.hidden_loss, heads, widths(teacher))


def inside_of_teacher(config: RunConfig) -> dict[str, tuple[int, int]]:
    """What a batch has of the teacher's inside: name -> (layers, features)."""
    if config.distill is None or config.distill.match is None:
        return {}
    section, teacher = config.distill.match, _teacher_config(config)
    if section.layers is not None:
        num = len(section.layers)
    elif config.distill.student is not None:
        num = len(chosen_layers(config.distill.student, teacher.num_layers))
    else:
        num = min(_student_layers(config), teacher.num_layers)
    found = {HIDDEN: (num, teacher.hidden_size)} if section.hidden else {}
    return found | ({RELATED: (num, sum(widths(teacher)))} if section.attention else {})


def _student_layers(config: RunConfig) -> int:
    named = config.model
    if named.path is None:
        raise ConfigError("a student that starts from zero has no layers to go by", wanted="distill.match.layers")
    return int(_config_of(named.path, named.revision).num_layers)


def _teacher_config(config: RunConfig) -> Any:
    assert config.distill is not None
    return _config_of(config.distill.teacher.path, config.distill.teacher.revision)


@cache
def _config_of(path: str, revision: str | None) -> Any:
    """Of a model's layers, without its weights."""
    return hub.outline(path, "float32", make_mesh(devices=jax.devices()[:1]), revision=revision).config
