"""jaxlean: JAX/Flax software that makes training language models cheap."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxlean.hub.load import load as load

__all__ = ["load", "__version__"]


def __getattr__(name: str) -> Any:
    # `import jaxlean` must stay instant; jax and flax come with the first use.
    if name == "load":
        from jaxlean.hub.load import load

        return load
    raise AttributeError(f"module 'jaxlean' has no attribute {name!r}")
