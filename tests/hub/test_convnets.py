"""What the convolutional families share: rounding, names, shapes, and what is refused."""

import json

import numpy as np
import pytest
from transformers import AutoConfig

from jaxlean.errors import ModelError
from jaxlean.hub.convnets import EXPANDED, divisible, tensor, to_ours, to_theirs
from jaxlean.hub.families import efficientnet, mobilenet_v1, mobilenet_v2

FAMILIES = [mobilenet_v1.FAMILY, mobilenet_v2.FAMILY, efficientnet.FAMILY]


@pytest.mark.parametrize(
    ("value", "divisor", "least", "wanted"),
    [(32, 8, None, 32), (11.2, 8, None, 16), (3.2, 8, None, 8), (24.6, 8, 8, 24), (3, 4, 3, 4), (1, 4, 6, 6)],
)
def test_channels_are_rounded(value, divisor, least, wanted):
    assert divisible(value, divisor, least) == wanted


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_every_module_has_a_name_of_its_own(family):
    config = family.config(AutoConfig.for_model(family.model_type, **SIZES.get(family.model_type, {})))
    modules = family.modules(config)
    assert len(set(modules.values())) == len(modules)
    assert {module.split(".")[0] for module in modules} <= {
        "stem",
        "stem_norm",
        "blocks",
        "top",
        "top_norm",
        "classifier",
    }


SIZES = {"efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}}


def test_sizes_of_the_papers_models():
    assert [len(family.config(AutoConfig.for_model(family.model_type)).blocks) for family in FAMILIES] == [13, 17, 55]
    b0 = efficientnet.FAMILY.config(AutoConfig.for_model("efficientnet", **SIZES["efficientnet"]))
    assert [block.channels for block in b0.blocks] == [
        *(16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
    ]
    assert (b0.stem, b0.top, b0.blocks[1].squeeze, b0.blocks[1].expanded) == (32, 1280, 4, 96)


def test_names_of_tensors():
    config = mobilenet_v2.FAMILY.config(AutoConfig.for_model("mobilenet_v2"))
    modules = mobilenet_v2.FAMILY.modules(config)
    assert tensor("blocks.00.depthwise.filters", modules) == "mobilenet_v2.conv_stem.conv_3x3.convolution.weight"
    assert tensor("blocks.12.expand_norm.var", modules) == (
        "mobilenet_v2.layer.11.expand_1x1.normalization.running_var"
    )
    assert "blocks.00.expand" not in modules


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("blocks.1.depthwise.filters", (8, 1, 3, 5)),
        ("blocks.1.expand.kernel", (8, 4, 1, 1)),
        ("classifier.kernel", (8, 4)),
        ("stem_norm.scale", (8,)),
    ],
)
def test_shapes_go_both_ways(path, shape):
    theirs = np.arange(np.prod(shape)).reshape(shape)
    ours = to_ours(path, theirs)
    assert ours.shape[-1] == 8
    np.testing.assert_array_equal(to_theirs(path, ours), theirs)


def test_a_filter_keeps_its_height_and_width():
    theirs = np.arange(6 * 2 * 3 * 5).reshape(6, 2, 3, 5)
    assert to_ours("stem.filters", theirs)[2, 4, 1, 5] == theirs[5, 1, 2, 4]


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("mobilenet_v2", {"hidden_act": "mish"}, ["an activation that is not supported", "mish", "relu6"]),
        ("efficientnet", {"hidden_dim": 100}, ["hidden_dim", "100", "2560"]),
        ("efficientnet", {"pooling_type": "sum"}, ["a kind of pooling", "sum", "mean, max"]),
        ("efficientnet", {"kernel_sizes": [4, 3, 5, 3, 5, 5, 3]}, ["stage 0", "kernel 4"]),
        ("efficientnet", {"strides": [1, 2, 3, 2, 1, 2, 1]}, ["stage 2", "stride 3"]),
        ("efficientnet", {"in_channels": [32, 16, 24, 99, 80, 112, 192]}, ["in_channels[3]", "99"]),
        ("efficientnet", {"strides": [1, 2]}, ["differ in length"]),
    ],
)
def test_what_is_not_supported_is_refused(model_type, changes, says):
    family = {family.model_type: family for family in FAMILIES}[model_type]
    with pytest.raises(ModelError) as caught:
        family.config(AutoConfig.for_model(model_type, **changes))
    for words in says:
        assert words in str(caught.value)


def test_narrower_blocks_are_read_from_the_config(golden, tmp_path):
    family = mobilenet_v2.FAMILY
    raw = json.loads((golden / "mobilenet_v2_same" / "config.json").read_text())
    plain = family.config(AutoConfig.from_pretrained(golden / "mobilenet_v2_same"))
    widths = [block.expanded and block.expanded - 1 for block in plain.blocks]

    def read(widths):
        (tmp_path / "config.json").write_text(json.dumps(raw | {EXPANDED: widths}))
        return family.config(AutoConfig.from_pretrained(tmp_path))

    assert read(widths) == plain.narrowed(widths)
    assert read(None) == plain
    for wrong in (widths[1:], [4, *widths[1:]], [None, 0, *widths[2:]]):
        with pytest.raises(ModelError, match="expanded_channels does not fit"):
            read(wrong)
