"""Settings of calibration and quantization."""

import pytest

from jaxlean.config import build
from jaxlean.errors import ConfigError


def test_other_projects_names():
    found = build(
        {"calibration": {"num_calibration_samples": 7, "max_seq_length": 32}, "quantize": {"smoothing_strength": 0.7}}
    )
    assert (found.calibration.num_rows, found.calibration.max_length) == (7, 32)
    assert found.quantize.smoothquant_alpha == 0.7
    assert build({}).quantize.smoothquant_alpha == "auto"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scheme": "w2a16"}, "scheme"),
        ({"method": "gtpq"}, "method"),
        ({"group_size": 0}, "group_size"),
        ({"smoothquant_alpha": 2}, "smoothquant_alpha"),
        ({"ignore": ["("]}, "not a regular expression"),
        ({"max_error": -1}, "max_error"),
        ({"groupsize": 32}, "group_size"),
    ],
)
def test_what_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        build({"quantize": values})
