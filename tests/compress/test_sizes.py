"""Sizes for a share of the parameters, against the models that they make."""

from dataclasses import replace

import pytest

from jaxlean import load, tree
from jaxlean.compress import sizes, structured
from jaxlean.errors import ConfigError


def test_sizes_for_a_share(tiny_base):
    model = load(tiny_base, "float32")
    whole = sizes.num_params(model.config)
    assert whole == sum(x.size for x in tree.flatten(model.params).values())
    for what in ("neurons", "structured", "heads", "layers"):
        share = {"heads": 0.97, "layers": 0.9}.get(what, 0.93)
        found = sizes.sizes(model, share, what)
        config = replace(model.config, **found)
        if "num_kv_heads" in found:
            config = structured.narrowed(model, **found)
        assert 0.9 * share * whole < sizes.num_params(config) <= share * whole, what
    with pytest.raises(ConfigError, match="so few are left only if more goes than all neurons"):
        sizes.sizes(model, 0.5, "neurons")
    with pytest.raises(ConfigError, match="a share of the parameters that stays"):
        sizes.sizes(model, 1.5, "layers")
