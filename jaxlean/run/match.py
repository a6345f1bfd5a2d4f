"""Which layers of a student are to be like which of its teacher's (`distill.match`)."""

import math
from functools import cache
from typing import Any

import jax

from jaxlean.config import RunConfig, StudentSection
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub import load as hub
from jaxlean.hub.load import Model
from jaxlean.run.student import chosen_layers
from jaxlean.train.match import HIDDEN, RELATED, Match, widths
from jaxlean.xla.mesh import make_mesh


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
        if made is None or made.params is not None:
            made = StudentSection(num_layers=min(ours.num_layers, teacher.num_layers))
        theirs = chosen_layers(made, teacher.num_layers)
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
    section, teacher, made = config.distill.match, _teacher_config(config), config.distill.student
    if section.layers is not None:
        num = len(section.layers)
    elif made is not None:
        num = teacher.num_layers if made.params is not None else len(chosen_layers(made, teacher.num_layers))
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
