"""What the convolutional families share: rounding, names, shapes, and what is refused."""

import json

import pytest
from transformers import AutoConfig

from jaxlean.adapt import lora
from jaxlean.errors import ModelError
from jaxlean.hub.convnets import EXPANDED, divisible
from jaxlean.hub.families import efficientnet, mobilenet_v1, mobilenet_v2
from jaxlean.hub.names import Names
from jaxlean.models.build import abstract

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


def test_gates_are_no_part_of_all_linear():
    family = efficientnet.FAMILY.family
    config = family.config(AutoConfig.for_model("efficientnet", **SIZES["efficientnet"]))
    found = lora.targets(abstract(config)[1], "all-linear", apart=family.apart)
    assert {name.split(".")[-1] for name in found} == {"expand", "project", "top"}


def test_names_of_tensors():
    config = mobilenet_v2.FAMILY.config(AutoConfig.for_model("mobilenet_v2"))
    names = Names(mobilenet_v2.FAMILY.family, config)
    assert names.tensor("blocks.00.depthwise.filters") == "mobilenet_v2.conv_stem.conv_3x3.convolution.weight"
    assert names.tensor("blocks.12.expand_norm.var") == "mobilenet_v2.layer.11.expand_1x1.normalization.running_var"
    assert "blocks.00.expand" not in mobilenet_v2.FAMILY.modules(config)


def test_how_a_tensor_lies_in_its_file():
    """A convolution is [out, in / groups, height, width] there; one of a single pixel is a matrix here."""
    family = mobilenet_v2.FAMILY
    names = Names(family.family, family.config(AutoConfig.for_model("mobilenet_v2")))
    assert names.axes("blocks.01.depthwise.filters", 4) == (2, 3, 1, 0)
    assert names.axes("blocks.01.expand.kernel", 2) == names.axes("classifier.kernel", 2) == (1, 0)
    assert names.on_file("blocks.01.expand.kernel", (8, 4)) == (8, 4, 1, 1)
    assert names.on_file("classifier.kernel", (8, 4)) == (8, 4)


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
    raw = json.loads((golden / "mobilenetv2_classify" / "config.json").read_text())
    plain = family.config(AutoConfig.from_pretrained(golden / "mobilenetv2_classify"))
    widths = [block.expanded and block.expanded - 1 for block in plain.blocks]

    def read(widths):
        (tmp_path / "config.json").write_text(json.dumps(raw | {EXPANDED: widths}))
        return family.config(AutoConfig.from_pretrained(tmp_path))

    assert read(widths) == plain.narrowed(widths)
    assert read(None) == plain
    for wrong in (widths[1:], [4, *widths[1:]], [None, 0, *widths[2:]]):
        with pytest.raises(ModelError, match="expanded_channels does not fit"):
            read(wrong)
