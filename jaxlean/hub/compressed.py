"""compressed-tensors: the format in which quantized models are shared, and that vLLM and transformers load.

`config.json` has a `quantization_config`, and a linear layer's tensors are, of a weight [out, in] there:

    int-quantized   weight         int8   [out, in]
                    weight_scale   float  [out, 1]
    pack-quantized  weight_packed  int32  [out, ceil(in * bits / 32)]   numbers plus 2^(bits - 1), the first ones lowest
                    weight_scale   float  [out, 1], or [out, in / group] with a scale for each group of inputs
                    weight_shape   int64  [2]

(github.com/vllm-project/compressed-tensors.) Here a kernel is [in, out], in the leaves of `jaxlean.codec`. The first is
written where activations are rounded as well (W8A8), the second elsewhere. Asymmetric numbers, an order of the inputs
and static scales of activations are refused by name.
"""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlean import codec, tree
from jaxlean.codec import Format
from jaxlean.errors import ModelError
from jaxlean.hub.names import Names
from jaxlean.models.stack import stacks

METHOD = "compressed-tensors"
_PACKED, _SCALE, _SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"


@dataclass(frozen=True)
class Scheme:
    """How the linear layers of a model are held.

    Args:
        bits: of a weight: 4 or 8.
        group_size: inputs with one scale; None: all of them.
        activations: whether these are rounded to 8 bits too, each token with a scale of its own.
        ignore: names of modules that are not quantized, or regexes after `re:`.
    """

    bits: int
    group_size: int | None
    activations: bool
    ignore: tuple[str, ...] = ()

    @property
    def form(self) -> Format:
        """Of the leaves of a kernel."""
        if self.bits == 4:
            return "int4"
        return "int8" if self.group_size is None else "int8_grouped"

    def holds(self, module: str) -> bool:
        """Whether a linear layer, by its name in files, is quantized."""
        return not any(
            re.match(rule.removeprefix("re:"), module) if rule.startswith("re:") else rule == module
            for rule in self.ignore
        )


# ---- config.json


def read_scheme(config: Mapping[str, Any], where: object) -> Scheme | None:
    """The scheme of a model's files; None where they are not compressed-tensors.

    Args:
        config: the content of `config.json`.
        where: that file.

    Raises:
        ModelError: a scheme that is not read; says which part of it.
    """
    found = config.get("quantization_config") or {}
    if found.get("quant_method") != METHOD:
        return None
    _check_form(found, where)
    groups = list((found.get("config_groups") or {}).values())
    weights = (groups[0].get("weights") or {}) if groups else {}
    given = (groups[0].get("input_activations") or None) if groups else None
    of_outputs = groups[0].get("output_activations") if groups else None
    strategy = weights.get("strategy")
    targets, form = groups[0].get("targets") if groups else None, found.get("format")
    own_form = groups[0].get("format") if groups else None
    of_activations = (
        None if given is None else tuple(given.get(key) for key in ("num_bits", "type", "dynamic", "strategy"))
    )
    refused = [
        (len(groups) != 1, "config_groups", f"{len(groups)} groups", "one"),
        (targets != ["Linear"], "targets", targets, ["Linear"]),
        (form not in ("int-quantized", "pack-quantized"), "format", form, "int-quantized or pack-quantized"),
        (own_form not in (None, form), "format of the group", own_form, form),
        (weights.get("type", "int") != "int", "weights.type", weights.get("type"), "int"),
        (weights.get("num_bits") not in (4, 8), "weights.num_bits", weights.get("num_bits"), "4 or 8"),
        (not weights.get("symmetric", True), "weights.symmetric", False, True),
        (strategy not in ("channel", "group"), "weights.strategy", strategy, "channel or group"),
        (weights.get("actorder") in ("group", True), "weights.actorder", weights.get("actorder"), "none, or weight"),
        (bool(found.get("transform_config")), "transform_config", "rotations of what layers are given", None),
        (found.get("kv_cache_scheme") is not None, "kv_cache_scheme", found.get("kv_cache_scheme"), None),
        (of_outputs is not None, "output_activations", of_outputs, None),
        (
            of_activations not in (None, (8, "int", True, "token")),
            *("input_activations", of_activations, "8 bits, int, dynamic, a scale a token"),
        ),
        (given is not None and not given.get("symmetric", True), "input_activations.symmetric", False, True),
        (
            given is not None and (weights.get("num_bits") != 8 or strategy != "channel"),
            *(
                "input_activations",
                f"beside weights of {weights.get('num_bits')} bits, {strategy}",
                "beside 8, channel",
            ),
        ),
    ]
    for wrong, key, got, wanted in refused:
        if wrong:
            raise ModelError(
                f"a quantized checkpoint that is not read: {key}", where=where, got=got, wanted=wanted,
                fix="the wide model, with model.quantization=int8 or nf4",
            )  # fmt: skip
    size = weights.get("group_size") if strategy == "group" else None
    return Scheme(weights["num_bits"], size, given is not None, tuple(found.get("ignore") or ()))


def _check_form(found: Mapping[str, Any], where: object) -> None:
    """Refuse what is no description of a scheme at all. Raises: ModelError."""
    groups, ignore = found.get("config_groups") or {}, found.get("ignore") or []

    def wrong(what: str, got: object, wanted: str) -> ModelError:
        return ModelError(f"quantization_config.{what} is malformed", where=where, got=repr(got), wanted=wanted)

    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise wrong("config_groups", groups, "an object of objects")
    for group in groups.values():
        weights = group.get("weights") or {}
        if not isinstance(weights, Mapping) or not isinstance(group.get("input_activations") or {}, Mapping):
            raise wrong("config_groups", group, "weights and input_activations that are objects, or null")
        size = weights.get("group_size")
        if weights.get("strategy") == "group" and (not isinstance(size, int) or size < 1):
            raise wrong("config_groups: weights.group_size", size, "a whole number, 1 or more")
    if not isinstance(ignore, list) or not all(isinstance(rule, str) for rule in ignore):
        raise wrong("ignore", ignore, "a list of names and of regexes, re:...")
    for rule in ignore:
        try:
            re.compile(rule.removeprefix("re:"))
        except re.error as error:
            raise wrong("ignore", rule, f"a regular expression ({error})") from error


def settings(scheme: Scheme) -> dict[str, Any]:
    """The `quantization_config` of a scheme."""
    common = {
        "type": "int", "symmetric": True, "actorder": None, "block_structure": None, "observer_kwargs": {},
    }  # fmt: skip
    weights = common | {
        "num_bits": scheme.bits, "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size, "dynamic": False, "observer": "minmax",
    }  # fmt: skip
    token = {"num_bits": 8, "strategy": "token", "group_size": None, "dynamic": True, "observer": None}
    group = {
        "targets": ["Linear"], "weights": weights,
        "input_activations": common | token if scheme.activations else None, "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": METHOD, "format": "int-quantized" if scheme.activations else "pack-quantized",
        "quantization_status": "compressed", "global_compression_ratio": None, "kv_cache_scheme": None,
        "ignore": list(scheme.ignore), "config_groups": {"group_0": group},
    }  # fmt: skip


# ---- which layers


def scheme_of(params: Mapping[str, Any], names: Names, *, activations: bool) -> Scheme:
    """The scheme that a tree with quantized kernels has.

    Raises:
        ModelError: its kernels are in a format that is not shared (nf4), or in several.
    """
    kernels = codec.kernels(tree.flatten(params))
    forms: set[str] = set()
    sizes: dict[str, tuple[int, int]] = {}  # module -> inputs of a group, groups
    ignore = []
    for module, held in kernels.items():
        form = next(main for main in codec.LEAVES if main in held).removeprefix("kernel_")
        if form == "kernel":
            every = names.tensors(f"{module}.kernel", held["kernel"].shape)
            ignore += [names.name(module, *index) for index, _ in every]
            continue
        if form == "nf4":
            raise ModelError("nf4 is not written", where=module, fix="jaxlean quantize, of the model as it was before")
        forms.add(form)
        groups = held["kernel_scales"].shape[-2] if "kernel_scales" in held else 1
        sizes[module] = codec.shape(held)[-2] // groups, groups
    if len(forms) != 1:
        raise ModelError("kernels in several formats", got=", ".join(sorted(forms)))
    # one group is all of a column, and says so where no other kernel has more
    grouped = {size for size, groups in sizes.values() if groups > 1}
    size = max(grouped, default=None)
    if any(own != size for own, groups in sizes.values() if grouped):
        raise ModelError("kernels in groups of several sizes", got=sorted({own for own, _ in sizes.values()}))
    # a head that is the embedding is no module of the tree, and is not quantized
    if "head" not in params and names.modules(["head"]):
        ignore.append(names.module("head"))
    return Scheme(4 if forms == {"int4"} else 8, size, activations, tuple(sorted(ignore)))


def is_held(scheme: Scheme, names: Names, module: str, *index: int) -> bool:
    """Whether the linear layer at an index of the leading dims of a module is quantized."""
    name = names.name(module, *index)
    return scheme.holds(name) and scheme.holds(name.removeprefix(names.family.prefix))


def with_wide_layers(config: Any, names: Names, scheme: Scheme, modules: Sequence[str]) -> Any:
    """The model's config with layers of kinds of their own where a linear layer is wide in some layers only.

    Args:
        config: of the model.
        names: of its parameters.
        scheme: of its files.
        modules: paths of its linear layers.
    """
    wide: dict[int, set[str]] = {}
    for path in modules:
        if not path.startswith("layers."):
            continue
        stack, own = re.match(r"layers\.(?:(\d+)\.)?(.*)", path).groups()  # type: ignore[union-attr]
        numbers = stacks(config.all_kinds)[int(stack or 0)].numbers
        for index, number in enumerate(numbers):
            if not is_held(scheme, names, path, index):
                wide.setdefault(number, set()).add(own)
    if not wide:
        return config
    everywhere = set.intersection(*(wide.get(number, set()) for number in range(config.num_layers)))
    kinds = [
        replace(kind, wide=tuple(sorted(wide.get(i, set()) - everywhere))) for i, kind in enumerate(config.all_kinds)
    ]
    return replace(config, kinds=tuple(kinds)) if any(kind.wide for kind in kinds) else config


# ---- tensors


def whole_names(files: Mapping[str, Path]) -> dict[str, Path]:
    """Tensor name -> file, where what is held of a quantized weight counts as the one tensor `...weight`."""
    out = {}
    for name, file in files.items():
        if name.endswith(_PACKED):
            out[name.removesuffix("_packed")] = file
        elif not name.endswith((_SCALE, _SHAPE)):
            out[name] = file
    return out


def is_packed(name: str, every: Container[str]) -> bool:
    """Whether a weight, `...weight`, is held in fewer bits in files with these tensors."""
    module = name.removesuffix(".weight")
    return module + _PACKED in every or module + _SCALE in every


def read_leaves(files: Mapping[str, Path], name: str, shape: tuple[int, int], scheme: Scheme) -> dict[str, np.ndarray]:
    """The leaves of one kernel.

    Args:
        files: every tensor's, by its name.
        name: of the tensor, `...weight`.
        shape: [in, out] of the kernel.
        scheme: of the files.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """
    module = name.removesuffix(".weight")
    dim_in, dim_out = shape
    packed = module + _PACKED in files
    groups = 1 if scheme.group_size is None else -(-dim_in // scheme.group_size)
    scales = _tensor(files, module + _SCALE, (dim_out, groups)).astype(np.float32).T
    if not packed:
        values = _tensor(files, name, (dim_out, dim_in))
        if values.dtype != np.int8:
            raise ModelError(f"a quantized tensor is not int8: {name}", where=files.get(name), got=values.dtype)
    else:
        words = _tensor(files, module + _PACKED, (dim_out, -(-dim_in * scheme.bits // 32)))
        values = unpack(words, dim_in, scheme.bits)
    kernel = np.ascontiguousarray(values.T)
    if scheme.form == "int8":
        return {"kernel_int8": kernel, "kernel_scale": np.ascontiguousarray(scales[0])}
    leaves = codec.pack_groups(jnp.asarray(kernel), jnp.asarray(np.ascontiguousarray(scales)), scheme.bits)
    return {leaf: np.asarray(value) for leaf, value in leaves.items()}


def tensors(module: str, leaves: Mapping[str, np.ndarray], scheme: Scheme) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one kernel's leaves, by their names in files.

    Args:
        module: its name in files.
        leaves: of a kernel [in, out].
        scheme: of the files.
    """
    if "kernel_int8" in leaves:
        values, scales = leaves["kernel_int8"], leaves["kernel_scale"][None]
    else:
        values, scales = map(np.asarray, codec.unpack_groups(leaves))
    turned = np.ascontiguousarray(values.T)
    if scheme.activations:
        yield f"{module}.weight", turned
    else:
        yield module + _PACKED, pack(turned, scheme.bits)
        yield module + _SHAPE, np.asarray(turned.shape, np.int64)
    yield module + _SCALE, np.ascontiguousarray(scales.T)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """int8 [out, in] -> int32 [out, ceil(in * bits / 32)]."""
    num = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % num)), constant_values=-(2 ** (bits - 1)))
    codes = (padded.astype(np.int32) + 2 ** (bits - 1)).astype(np.uint32).reshape(len(values), -1, num)
    shifts = np.arange(num, dtype=np.uint32) * bits
    return np.bitwise_or.reduce(codes << shifts, axis=-1).view(np.int32)


def unpack(words: np.ndarray, dim_in: int, bits: int) -> np.ndarray:
    """The inverse of `pack`: int8 [out, in]."""
    shifts = np.arange(32 // bits, dtype=np.uint32) * bits
    codes = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return (codes.reshape(len(words), -1)[:, :dim_in].astype(np.int32) - 2 ** (bits - 1)).astype(np.int8)


def _tensor(files: Mapping[str, Path], name: str, shape: tuple[int, ...]) -> np.ndarray:
    from safetensors import safe_open

    if name not in files:
        raise ModelError(f"a tensor of a quantized weight is missing: {name}", wanted=f"shape {shape}")
    with safe_open(files[name], framework="numpy") as file:
        found = file.get_tensor(name)
    if found.shape != shape:
        raise ModelError(f"a tensor has the wrong shape: {name}", where=files[name], got=found.shape, wanted=shape)
    return found
