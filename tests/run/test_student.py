"""Students made of their teachers: which layers, that they compute what these layers compute, and load again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.config import MeshSection, StudentSection, TeacherSection, build
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.load import load
from jaxlean.hub.write import write_model
from jaxlean.models.stack import take_apart
from jaxlean.run.student import chosen_layers, from_teacher, load_teacher, shallower
from jaxlean.xla.mesh import make_mesh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_machine")]


@pytest.mark.parametrize(
    ("num_layers", "of", "chosen"),
    [(1, 4, [0]), (2, 4, [0, 3]), (3, 6, [0, 2, 5]), (6, 12, [0, 2, 4, 7, 9, 11]), (4, 4, [0, 1, 2, 3])],
)
def test_layers_are_spread_evenly(num_layers, of, chosen):
    assert chosen_layers(StudentSection(num_layers=num_layers), of) == chosen


def test_layers_that_the_teacher_has_not_are_refused():
    assert chosen_layers(StudentSection(layers=[1, 3]), 4) == [1, 3]
    with pytest.raises(ConfigError, match=r"no such layer(?s:.)*got: +4(?s:.)*0 to 3"):
        chosen_layers(StudentSection(layers=[0, 4]), 4)
    with pytest.raises(ConfigError, match=r"fewer layers than its student(?s:.)*got: +5"):
        chosen_layers(StudentSection(num_layers=5), 4)


@pytest.mark.parametrize(
    "name", ["llama_gqa", "gpt2_tied", "bert_classify", "distilbert_classify", "modernbert_classify"]
)
def test_a_student_is_written_and_read_as_its_family(golden, tmp_path, name):
    teacher = load(golden / name, "float32")
    layers = [0] if teacher.config.num_layers < 3 else [0, teacher.config.num_layers - 1]
    if name == "modernbert_classify":  # one global layer among local ones
        layers = [0]
    student = shallower(teacher, layers)
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    own = take_apart(student.params["layers"], student.config.all_kinds)
    theirs = take_apart(teacher.params["layers"], teacher.config.all_kinds)
    for layer, number in zip(own, layers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, layer, theirs[number])
    write_model(student, tmp_path / "student")
    again = load(tmp_path / "student", "float32")
    assert again.config.num_layers == len(layers)
    np.testing.assert_allclose(again(tokens), student(tokens), rtol=1e-5, atol=1e-5)


def test_layers_that_break_a_family_s_pattern_are_refused(golden):
    teacher = load(golden / "modernbert_classify", "float32")
    kinds = teacher.config.all_kinds
    odd = next(i for i, kind in enumerate(kinds) if kind != kinds[0] and i > 0)
    with pytest.raises(ModelError, match=r"cannot say it: it would change what else is computed(?s:.)*kinds"):
        shallower(teacher, [odd])


def test_an_outline_has_the_shapes_and_an_adapter_is_folded_in(tiny_base, tiny_run):
    from jaxlean.run.finetune import finetune

    finetune(tiny_run("train.max_steps=1", "data.eval=null"))
    adapter = tiny_run().output_dir + "/adapter"
    mesh = make_mesh(MeshSection())
    plain = load_teacher(TeacherSection(path=str(tiny_base)), mesh, dtype="float32")
    adapted = load_teacher(TeacherSection(path=str(tiny_base), adapter=adapter), mesh, dtype="float32")
    assert jax.tree.structure(plain.params) == jax.tree.structure(adapted.params)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    assert np.abs(plain(tokens) - adapted(tokens)).max() > 1e-4

    config = build({"distill": {"teacher": str(tiny_base), "student": {"layers": [1]}}, "model": {"dtype": "float32"}})
    how = {"trains": lambda path: True, "task": "generate"}
    whole, shapes = (from_teacher(config, mesh, shapes=shapes, **how) for shapes in (False, True))
    assert whole.config == shapes.config
    assert whole.hf_config["num_hidden_layers"] == 1

    def same(x, s):
        assert (x.shape, x.dtype) == (s.shape, s.dtype)

    jax.tree.map(same, whole.params, shapes.params)


def test_a_narrower_student_has_what_does_most(tiny_base, tiny_values, tmp_path):
    student = {"params": 0.95, "method": "neurons"}
    values = {"distill": {"teacher": str(tiny_base), "student": student}, "model": {"dtype": "float32"}, "lora": None}
    values |= {"data": tiny_values["data"], "calibration": {"num_rows": 4, "max_length": 64, "batch_size": 4}}
    config, mesh, lines = build(values), make_mesh(MeshSection()), []
    how = {"trains": lambda path: True, "task": "generate"}
    whole = from_teacher(config, mesh, say=lines.append, **how)
    shapes = from_teacher(config, mesh, shapes=True, **how)
    teacher = load(tiny_base, "float32")
    num, of = (sum(x.size for x in jax.tree.leaves(model.params)) for model in (whole, teacher))
    size = whole.config.intermediate_size
    assert lines == [f"student: intermediate_size {size}: {num:,} of the teacher's {of:,} parameters ({num / of:.1%})"]
    assert 0.9 < num / of <= 0.95
    assert shapes.config == whole.config
    assert shapes.hf_config == whole.hf_config

    def same(x, s):
        assert (x.shape, x.dtype, x.sharding) == (s.shape, s.dtype, s.sharding)

    jax.tree.map(same, whole.params, shapes.params)
    # its gates are columns of the teacher's, in their order
    ours, theirs = (np.asarray(model.params["layers"]["mlp"]["gate"]["kernel"][0]) for model in (whole, teacher))
    at = [int(np.flatnonzero((theirs == column[:, None]).all(axis=0))[0]) for column in ours.T]
    assert at == sorted(set(at))
    write_model(whole, tmp_path / "student")
    assert load(tmp_path / "student", "float32").config.intermediate_size == size
