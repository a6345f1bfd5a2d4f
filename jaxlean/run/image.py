"""The images that a model takes: their shape, or that it takes none."""

from jaxlean.data.images import read_preprocess
from jaxlean.hub.load import Model


def image_of(model: Model) -> tuple[int, int, int] | None:
    """The shape of a model's images, by its config or else by what is beside it; None where it has none."""
    if model.config.inputs != ("pixels",):
        return None
    if hasattr(model.config, "image_shape"):
        return model.config.image_shape
    assert model.folder is not None, "a model of images is read from files"
    height, width = read_preprocess(model.folder).shape
    return height, width, model.config.num_channels
