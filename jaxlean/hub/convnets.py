"""What the families of the one convolutional network share: sizes as their papers round them, and names.

A family is, as others are, a function from a Hugging Face config to ours and a table of names; but its blocks are
counted differently in each, so the table of a block is a function of its number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxlean.errors import ModelError
from jaxlean.hub.family import Family
from jaxlean.models.convnet import ConvNetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# In config.json, of a network whose blocks were made narrower (`compress.channels`): the channels inside of each block,
# null where the block has no first product. transformers cannot say it, and refuses such a file for its shapes.
EXPANDED = "expanded_channels"


@dataclass(frozen=True)
class ConvNetFamily:
    """A family of convolutional networks.

    Attributes:
        model_type: as in `config.json`.
        architecture: transformers' class of it with a classifier.
        shape: a transformers config -> our `ConvNetConfig`.
        ends: our module path -> Hugging Face's module, for what is no block.
        block: number of a block -> (our module inside of the block -> Hugging Face's module).
        carried: regexes of tensors that have no meaning here, but belong into a file: what was read is written again.
            The counters are those of batches that a statistic has seen: int64 [], 0 for a network that is new.
    """

    model_type: str
    architecture: str
    shape: Callable[["PreTrainedConfig"], ConvNetConfig]
    ends: Mapping[str, str]
    block: Callable[[int], Mapping[str, str]]
    carried: tuple[str, ...] = (r"\.num_batches_tracked$",)

    def config(self, hf: "PreTrainedConfig") -> ConvNetConfig:
        """A transformers config -> our `ConvNetConfig`.

        Raises:
            ModelError: something that is not supported, or that does not fit together.
        """
        config = self.shape(hf)
        widths = getattr(hf, EXPANDED, None)
        if widths is None:
            return config
        have = [block.expanded for block in config.blocks]
        if [width is None for width in widths] != [width is None for width in have] or 0 in widths:
            raise ModelError(
                f"{EXPANDED} does not fit the blocks", got=widths, wanted=f"as many as here, or less: {have}"
            )
        return config.narrowed(widths)

    @property
    def family(self) -> Family:
        """As `hub.families` lists it."""
        return Family(
            model_type=self.model_type,
            architecture=self.architecture,
            config=self.config,
            modules=self.modules,
            classifier=self.architecture,
            prefix="",
            ignored=(r"^classifier\.", *self.carried),
            carried=self.carried,
            ones={r"^(?!classifier).*\.kernel$": (2, 3)},
            apart=(r"\.squeeze\.",),  # 4 to 48 channels: narrower than many an adapter
        )

    def modules(self, config: ConvNetConfig) -> dict[str, str]:
        """Our module path -> Hugging Face's module, for every module that holds a parameter."""
        out = {ours: theirs for ours, theirs in self.ends.items() if config.top is not None or "top" not in ours}
        for i, block in enumerate(config.blocks):
            for ours, theirs in self.block(i).items():
                there = {"expand": block.expanded, "expand_norm": block.expanded, "squeeze": block.squeeze}
                if there.get(ours.split(".")[0], True) is not None:
                    out[f"blocks.{config.name(i)}.{ours}"] = theirs
        return out


def divisible(value: float, divisor: int, least: int | None = None) -> int:
    """The number of channels nearest to `value` that `divisor` divides, at least `least`, never below 90 % of it.

    TensorFlow's rule for MobileNets and EfficientNets: github.com/tensorflow/models, slim/nets/mobilenet.

    >>> divisible(33, 8), divisible(3, 8), divisible(11, 8)
    (32, 8, 16)
    """
    rounded = max(least if least is not None else divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
