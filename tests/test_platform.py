"""What a program is written for."""

import jax

from jaxlean.platform import platform, written_for


def test_here_unless_said_otherwise():
    assert platform() == jax.default_backend()
    with written_for("tpu"):
        assert platform() == "tpu"
        with written_for("gpu"):
            assert platform() == "gpu"
        assert platform() == "tpu"
    assert platform() == jax.default_backend()
