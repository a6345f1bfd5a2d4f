"""The teacher of a run that distils: a program of its own, on its own mesh, that says what it expects of a batch."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean import tree
from jaxlean.config import MeshSection, RunConfig
from jaxlean.data.epochs import Batch
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.files import read_json
from jaxlean.hub.load import Model, load_tokenizer
from jaxlean.hub.names import Names
from jaxlean.hub.read import is_bare, stored_tensors
from jaxlean.hub.task import not_in_files
from jaxlean.models.layout import layout_on
from jaxlean.run.image import image_of
from jaxlean.run.job import head_of
from jaxlean.run.match import match_of
from jaxlean.run.student import load_teacher
from jaxlean.train.distill import Teach, Teaching, make_teach, make_teach_labels
from jaxlean.train.loss import chunk_budget
from jaxlean.xla.mesh import batch_sharding, make_mesh, num_batch_shards, replicated

# Texts that tokenizers with the same tokens may still cut otherwise.
_PROBES = (
    "The quick brown fox, it's 12,345.67 jumps!",
    "  two  spaces\n\tand a tab",
    "naïve café, Straße, 東京, привет 🙂",
    "def f(x):\n    return x ** 2  # comment",
)


def student_devices(config: RunConfig) -> list[jax.Device] | None:
    """Those that the student trains on; None: all.

    Raises:
        ConfigError: the teacher would leave it none.
    """
    num = config.distill.devices if config.distill is not None else None
    if num is None:
        return None
    every = jax.devices()
    if num >= len(every):
        raise ConfigError(
            "distill.devices leaves the student none", got=f"{num} of {len(every)}",
            wanted=f"at most {len(every) - 1}", fix="leave it out: then both have all",
        )  # fmt: skip
    return every[:-num]


def teacher_mesh(config: RunConfig, mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The teacher's: that of the student, unless the config says otherwise."""
    distill = config.distill
    assert distill is not None
    if distill.devices is None and distill.fsdp == distill.tensor == 1:
        return mesh
    devices = jax.devices()[-distill.devices :] if distill.devices is not None else list(mesh.devices.flat)
    return make_mesh(MeshSection(data=-1, fsdp=distill.fsdp, tensor=distill.tensor), devices)


class Teacher:
    """What is known of the teacher before its weights are read, and, once `model` was asked for, the teacher.

    Args:
        config: resolved, with a `distill` section.
        student: whose tokens it is to know.
        mesh: the student's.

    Raises:
        ConfigError: it is asked for more tokens than there are.
        ModelError: it is not there, has other tokens than the student, or no trained head for the task.
    """

    def __init__(self, config: RunConfig, student: Model, mesh: jax.sharding.Mesh):
        assert config.distill is not None
        self._config, self.section = config, config.distill.teacher
        self.mesh = teacher_mesh(config, mesh)
        self._adapter = Path(self.section.adapter) if self.section.adapter is not None else None
        outline = self._load(shapes=True)
        assert outline.folder is not None
        self.folder = outline.folder
        if image_of(outline) is not None or image_of(student) is not None:
            raise ConfigError("distill is for models of text", got=outline.family.model_type)
        beside = self._adapter is not None and (self._adapter / "tokenizer.json").exists()
        tokenizer = load_tokenizer(str(self._adapter)) if beside else outline.tokenizer
        check_same_tokens(tokenizer, student.tokenizer)
        num = max(student.tokenizer.get_vocab().values()) + 1
        sizes = {"teacher": outline.config.vocab_size, "student": student.config.vocab_size}
        for name, size in sizes.items():
            if size < num and not (name == "teacher" and beside):
                raise ModelError(
                    f"the {name}'s table is too small for the tokens", got=f"{size:,} rows", wanted=f"{num:,} or more"
                )
        known = min(sizes.values()) if not beside else student.config.vocab_size
        k = config.distill.top_k if config.task == "generate" else len(config.data.labels or ())
        if config.task == "generate" and k > known:
            raise ConfigError(
                "the teacher is asked for more tokens than there are", where="distill.top_k", got=k,
                wanted=f"at most {known:,}",
            )  # fmt: skip
        if self._adapter is None and has_untrained_head(outline, config.data.labels):
            raise ModelError(
                f"the teacher has no head for task: {config.task}, so it has nothing to teach",
                where=self.section.path, fix="train it first: jaxlean finetune; its adapter is distill.teacher.adapter",
            )  # fmt: skip
        self.teaching = Teaching(k, config.distill.temperature, known, jnp.dtype(config.distill.precision))
        self._match = match_of(config, student)
        self.dtype = outline.dtype
        self._model: Model | None = None
        self._teach: Any = None

    def _load(self, *, shapes: bool = False) -> Model:
        return load_teacher(
            self.section, self.mesh, shapes=shapes, dtype=self.section.dtype, quantization=self.section.quantization,
            attention=self._config.model.attention, **head_of(self._config),
        )  # fmt: skip

    @property
    def model(self) -> Model:
        """With its weights, which are read on first use."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def forget(self) -> None:
        """Let go of its weights."""
        self._model = self._teach = None

    def says(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """What it expects at each place of a batch that carries loss, by the names in `train.distill`.

        Args:
            batch: [microbatches, rows, length] each, on the host.

        Returns:
            arrays [microbatches, rows, length, ...] on the teacher's devices.
        """
        if self._teach is None:
            self._teach = self._program()
        rows = next(iter(batch.values())).shape[1]
        fill = -rows % num_batch_shards(self.mesh)
        where = batch_sharding(self.mesh, leading=1)
        # rows of padding carry no loss; a label of 0 would
        padded = {
            name: np.pad(x, [(0, 0), (0, fill), (0, 0)], constant_values=-100 if name == "labels" else 0)
            for name, x in batch.items()
        }
        found = self._teach(self.model.params, {name: jax.device_put(x, where) for name, x in padded.items()})
        if fill:
            found = {name: jax.device_put(x, replicated(self.mesh))[:, :rows] for name, x in found.items()}
        return found

    def _program(self) -> Any:
        teach = self._of_one()

        def every(params: tree.Tree, batch: Batch) -> dict[str, jax.Array]:
            if next(iter(batch.values())).shape[0] == 1:
                found = teach(params, {name: x[0] for name, x in batch.items()})
                return {name: x[None] for name, x in found.items()}
            return jax.lax.map(lambda rows: teach(params, rows), batch)

        return jax.jit(every)

    def _of_one(self) -> Teach:
        model, layout = self.model, layout_on(self.mesh)
        if self._config.task != "generate":
            return make_teach_labels(model.graph, self._config.task, self.teaching, layout=layout, match=self._match)
        budget = chunk_budget(self._config.train.loss_chunk_bytes, self.mesh.size, model.config.vocab_size)
        return make_teach(
            model.graph, model.config, self.teaching, logits_bytes=budget, layout=layout, match=self._match
        )


def has_untrained_head(outline: Model, labels: list[str] | None) -> bool:
    """Whether the files of a model lack the head of its task: `hub.load.load` would draw one."""
    assert outline.folder is not None
    stored = stored_tensors(outline.folder, outline.family)
    names = Names(outline.family, outline.config, bare=is_bare(stored, outline.family))
    raw = read_json(outline.folder / "config.json")
    return bool(not_in_files(tree.flatten(outline.params), names, stored, raw=raw, labels=labels))


def check_same_tokens(teacher: Any, student: Any) -> None:
    """Refuse a teacher that reads texts as other tokens than its student.

    Raises:
        ModelError: names a token, or a text, that differs.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    fix = "distil into a student with the teacher's tokenizer"
    if ours != theirs:
        every = sorted(ours.items() | theirs.items(), key=lambda item: item[1])
        odd = [(token, i) for token, i in every if ours.get(token) != theirs.get(token)]
        shown = ", ".join(f"{token!r} is {theirs.get(token)} and {ours.get(token)}" for token, _ in _few(odd))
        raise ModelError(
            "the teacher has other tokens than the student, so what it expects means nothing to it",
            got=f"{len(theirs):,} and {len(ours):,} tokens; {shown}",
            wanted="the same tokens with the same ids", fix=fix,
        )  # fmt: skip
    for text in _PROBES:
        by = [tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (teacher, student)]
        if by[0] != by[1]:
            raise ModelError(
                "the teacher cuts texts into other tokens than the student", where=repr(text),
                got=f"{teacher.convert_ids_to_tokens(by[0])[:8]} and {student.convert_ids_to_tokens(by[1])[:8]}",
                fix=fix,
            )  # fmt: skip


def _few(odd: list[tuple[str, int]]) -> list[tuple[str, int]]:
    seen: dict[str, tuple[str, int]] = {}
    for token, i in odd:
        seen.setdefault(token, (token, i))
    return list(itertools.islice(seen.values(), 3))
