"""A picture of how much each layer suffers from being pruned alone (`compress.sensitivity` says what is measured)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from jaxlean.compress.prune import Choice
from jaxlean.compress.sensitivity import Alone, of_matrices, of_widths
from jaxlean.compress.structured import influences
from jaxlean.compress.walk import Batch
from jaxlean.config import PruneSection
from jaxlean.errors import ConfigError, RunError
from jaxlean.hub.load import Model

_KINDS = (".png", ".svg", ".pdf")


def check_file(file: Path) -> None:
    """Refuse what no picture can be written to, before anything is measured.

    Raises:
        RunError: a folder, one that is not there, another kind of file, or no matplotlib.
    """
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else "lies in a folder that is not there"
        raise RunError(f"the file for the sensitivity {what}", where=file, fix="--sensitivity names a file to write")
    if file.suffix.lower() not in _KINDS:
        raise RunError("a picture of a kind that is not drawn", where=file, wanted=", ".join(_KINDS))
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--sensitivity needs matplotlib", fix="pip install matplotlib")


def measure(model: Model, batches: Sequence[Batch], choice: Choice, wanted: PruneSection) -> list[Alone]:
    """What is to be drawn, for the config's method. Of whole layers it is their influence, of share 1."""
    if wanted.leaves_zeros:
        return of_matrices(model, batches, choice)
    if wanted.method == "layers":
        return [Alone(number, "layer", 1.0, found) for number, found in enumerate(influences(model, batches))]
    found = of_widths(model, batches, compensate=wanted.compensate, damping=wanted.damping)
    only = {"neurons": ("mlp.down",), "heads": ("attention.out",)}.get(wanted.method)
    return [alone for alone in found if only is None or alone.module in only]


def draw(found: Sequence[Alone], file: Path, *, method: str) -> None:
    """Write the picture: a panel for each share, in it a line for each kind of matrix over the layers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # heads go whole, so that their shares may be others than those asked for: third smallest with third smallest
    by_module = {
        module: sorted({x.share for x in found if x.module == module})
        for module in dict.fromkeys(x.module for x in found)
    }
    num = max(map(len, by_module.values()))
    figure = Figure(figsize=(1.2 + 4.4 * num, 4.6), layout="constrained")
    panels = figure.subplots(1, num, sharey=True, squeeze=False)[0]
    for i, axes in enumerate(panels):
        for module, shares in by_module.items():
            if i >= len(shares):
                continue
            own = sorted((x.layer, x.error) for x in found if x.module == module and x.share == shares[i])
            label = module if method in ("layers",) or len(by_module) == 1 else f"{module} ({shares[i]:.0%})"
            axes.plot(*zip(*own, strict=True), marker="o", markersize=3, linewidth=1.2, label=label)
        axes.set_yscale("log")
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if method != "layers":
            axes.set_title(f"{_asked(found, i, num):.0%} gone")
            axes.legend(fontsize=7)
    panels[0].set_ylabel(
        "block influence: 1 - cosine of in and out" if method == "layers" else "relative error of what the matrix gives"
    )
    what = "what each layer does" if method == "layers" else "each matrix pruned alone (its own error, not the loss)"
    figure.suptitle(f"{method}: {what}")
    figure.savefig(file, dpi=150)


def _asked(found: Sequence[Alone], i: int, num: int) -> float:
    """The share that panel i was asked for: the median of what its matrices have."""
    modules = {x.module for x in found}
    each = [sorted({x.share for x in found if x.module == module}) for module in modules]
    have = sorted(shares[i] for shares in each if i < len(shares))
    return have[len(have) // 2]
