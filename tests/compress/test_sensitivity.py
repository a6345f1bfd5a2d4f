"""Each matrix pruned alone, against pruning it for itself."""

import numpy as np
import pytest

from jaxlean import load
from jaxlean.compress import sensitivity
from jaxlean.compress.prune import Choice, prune_kernel, relative_error
from jaxlean.compress.walk import walk


@pytest.mark.usefixtures("small_machine")
def test_layers_do_not_see_each_other(tiny_base):
    model = load(tiny_base, "float32")
    random = np.random.default_rng(0)
    ones, positions = np.ones((2, 40), np.int32), np.tile(np.arange(40, dtype=np.int32), (2, 1))
    given = [{"tokens": random.integers(5, 2000, (2, 40), np.int32), "segments": ones, "positions": positions}]
    seen = []
    walk(model, given, seen.append)
    choice = Choice("wanda", rules=[("attention", 0.0)])
    found = sensitivity.of_matrices(model, given, choice, (0.25, 0.5))
    assert {(x.layer, x.module, x.share) for x in found} == {
        (layer, f"mlp.{name}", share) for layer in (0, 1) for name in ("gate", "up", "down") for share in (0.25, 0.5)
    }
    last = next(x for x in found if (x.layer, x.module, x.share) == (1, "mlp.down", 0.5))
    kernel, inputs = seen[1].kernels()["mlp.down"], seen[1].inputs["mlp.down"]
    pruned = prune_kernel(kernel, inputs, Choice("wanda", 0.5))
    assert last.error == pytest.approx(relative_error(kernel, pruned, inputs.gram), rel=1e-4)
    assert {x.share for x in sensitivity.of_matrices(model, given, choice._replace(of=(1, 4)))} == {0.75}

    widths = sensitivity.of_widths(model, given, shares=(0.5,))
    assert {(x.layer, x.module) for x in widths} == {(n, m) for n in (0, 1) for m in ("attention.out", "mlp.down")}
    assert all(x.share == 0.5 and 0 < x.error < 1 for x in widths)
    plain = sensitivity.of_widths(model, given, compensate=False, shares=(0.5,))
    assert all(one.error <= other.error for one, other in zip(widths, plain, strict=True))
