"""Which models take images, and of which shape."""

import pytest

from jaxlean.hub.load import load
from jaxlean.run.image import image_of


@pytest.mark.parametrize(("name", "shape"), [("llama_gqa", None), ("vit_nobias", (16, 24, 1))])
def test_the_shape_is_the_model_s_and_a_model_of_text_has_none(golden, name, shape):
    assert image_of(load(golden / name, "float32")) == shape
