"""Both names of everything in one model: our paths and Hugging Face's, with the layers counted.

Ours are stacks (`layers.attention.query.kernel` [layers, in, out], or `layers.1...` with every second layer, see
`jaxlean.models.stack`); Hugging Face's are one tensor a layer, and of a mixture one a layer and expert.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from typing import Any

from jaxlean.hub.family import LEAVES, Family
from jaxlean.models.stack import stacks

Index = tuple[int, ...]


class Names:
    """The names of one model.

    Args:
        family: whose table it is.
        config: of the model; says how its layers are stacked.
        bare: without the family's prefix, as models are saved that have no head (`h.0...` for `transformer.h.0...`).
    """

    def __init__(self, family: Family, config: Any, *, bare: bool = False):
        self.family = family
        self.bare = bare
        self._numbers: dict[str, range] = {}
        for tower, kinds in config.towers().items():
            found = stacks(kinds)
            for number, stack in enumerate(found):
                self._numbers[tower if len(found) == 1 else f"{tower}.{number}"] = stack.numbers
        self._table = dict(family.modules if isinstance(family.modules, Mapping) else family.modules(config))
        self.head: str = getattr(config, "head", "none")
        self._table |= family.heads.get(self.head, {})

    @property
    def of_adapters(self) -> "Names":
        """The same with the names that PEFT uses, of modules as transformers has them now."""
        other = copy(self)
        other._table = self._table | dict(self.family.adapters)
        return other

    def plain(self, path: str) -> str:
        """Our path without the number of its stack, as the family's table has it."""
        return re.sub(r"(^|\.)layers\.\d+\.", r"\1layers.", path)

    def module(self, ours: str) -> str:
        """Our module path -> Hugging Face's module name, `{}` being the layer (and a second one the expert).

        >>> from jaxlean.hub.families import family_of
        >>> from jaxlean.models.decoder import DecoderConfig
        >>> shape = dict(hidden_size=8, intermediate_size=8, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=8)
        >>> names = Names(family_of("llama"), DecoderConfig(vocab_size=8, **shape))
        >>> names.module("layers.attention.query"), names.tensor("layers.attention.query.kernel", 1)
        ('model.layers.{}.self_attn.q_proj', 'model.layers.1.self_attn.q_proj.weight')
        """
        return self._shown(self._table[self.plain(ours)])

    def modules(self, ours: Collection[str]) -> dict[str, str]:
        """`module` of each path that the family has a name for."""
        return {path: self.module(path) for path in ours if self.plain(path) in self._table}

    def template(self, path: str) -> str:
        """Our parameter path -> Hugging Face's tensor name, with `{}` for the layer and the expert."""
        plain = self.plain(path)
        if plain in self._table:  # a tensor that is no module's weight or bias
            return self._shown(self._table[plain])
        module, leaf = plain.rsplit(".", 1)
        return f"{self._shown(self._table[module])}.{LEAVES[leaf]}"

    def leading(self, path: str) -> int:
        """How many leading dims of the parameter are tensors of their own: 0, 1 (layers) or 2 (layers, experts)."""
        return self.template(path).count("{}")

    def tensor(self, path: str, *index: int) -> str:
        """The tensor at an index of the leading dims."""
        return self.template(path).format(*self._counted(path, index))

    def name(self, module: str, *index: int) -> str:
        """The module at an index of the leading dims."""
        return self.module(module).format(*self._counted(module, index))

    def tensors(self, path: str, shape: tuple[int, ...]) -> Iterator[tuple[Index, str]]:
        """Every tensor of a parameter, by its index in the leading dims."""
        leading = self.leading(path)

        def each(index: Index) -> Iterator[tuple[Index, str]]:
            if len(index) == leading:
                yield index, self.tensor(path, *index)
                return
            for i in range(shape[len(index)]):
                yield from each((*index, i))

        yield from each(())

    def every(self) -> dict[str, list[str]]:
        """Each module that the family's table has: its name with `{}`, and its names layer by layer.

        Experts are not counted: of a name with two `{}` the second one stays.
        """
        out: dict[str, list[str]] = {}
        for plain, template in self._table.items():
            shown = self._shown(template)
            first, *rest = shown.split("{}")
            tower = plain.rpartition("layers.")[0] + "layers"
            numbers = [n for s, own in self._numbers.items() if self.plain(s + ".")[:-1] == tower for n in own]
            out[shown] = [f"{first}{n}{'{}'.join(rest)}" for n in sorted(numbers)] if rest else [shown]
        return out

    def find(self, theirs: str, known: Collection[str]) -> tuple[str, Index] | None:
        """Hugging Face's module name -> (our path, its index in the leading dims); None where there is none.

        Args:
            theirs: with the numbers of layer and expert.
            known: the paths that there are.
        """
        for plain, template in self._table.items():
            match = re.fullmatch(re.escape(self._shown(template)).replace(r"\{\}", r"(\d+)"), theirs)
            if match is None:
                continue
            numbers = tuple(map(int, match.groups()))
            if not numbers:
                return plain, ()
            last = None
            for stack, layers in self._numbers.items():
                tower = self.plain(stack + ".")[:-1]
                if not plain.startswith(tower + "."):
                    continue
                ours = stack + plain.removeprefix(tower)
                if ours in known:
                    last = ours
                    if numbers[0] in layers:
                        return ours, (layers.index(numbers[0]), *numbers[1:])
            # a layer that is not there: past the end, so that who asked can say so
            return (last or plain), numbers
        return None

    def number(self, path: str, index: int) -> int:
        """The layer, by its number in the model, at an index of a parameter's or module's first dim."""
        return self._counted(path, (index,))[0]

    def is_beyond(self, name: str) -> bool:
        """Whether a tensor is of a layer that the config does not have."""
        match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
        return match is not None and not any(int(match[1]) in layers for layers in self._numbers.values())

    def at(self, plain: str, layer: int) -> tuple[str, int] | None:
        """The path with a layer's part of `layers. ...`, and the index there; None where there is no such layer."""
        tower, _, rest = plain.partition("layers.")
        for stack, layers in self._numbers.items():
            if self.plain(stack + ".")[:-1] == f"{tower}layers" and layer in layers:
                return f"{stack}.{rest}", layers.index(layer)
        return None

    def axes(self, path: str, num_dims: int) -> Index:
        """Which dim of the file's tensor each of ours is, leading dims left out.

        A matrix is [in, out] here and [out, in] there, a convolution [height, width, in, out] and [out, in, height,
        width].
        """
        if path.endswith(".filters"):
            return (2, 3, 1, 0)
        if path.endswith(".kernel") and not any(re.search(rule, self.plain(path)) for rule in self.family.untransposed):
            return (1, 0) if num_dims == 2 else tuple(range(num_dims))
        return tuple(range(num_dims))

    def ones(self, path: str) -> Index:
        """The dims of the file's tensor that are 1, and are none of ours."""
        plain = self.plain(path)
        return next((dims for rule, dims in self.family.ones.items() if re.search(rule, plain)), ())

    def on_file(self, path: str, shape: Index) -> Index:
        """The shape of the file's tensor, of its dims that are ours."""
        whole = list(shape)
        for dim in self.ones(path):
            whole.insert(dim, 1)
        return tuple(whole)

    def _shown(self, name: str) -> str:
        return name.removeprefix(self.family.prefix) if self.bare else name

    def _counted(self, path: str, index: Index) -> Index:
        if not index:
            return index
        stack = next(s for s in sorted(self._numbers, key=len, reverse=True) if path.startswith(s + "."))
        layers = self._numbers[stack]
        return (layers[index[0]] if index[0] < len(layers) else index[0], *index[1:])
