"""LoRA on a mixture's experts and router in PEFT's format, which adapts parameters there and not modules.

transformers holds a layer's experts as two parameters, `gate_up_proj` and `down_proj`, and PEFT (`target_parameters`,
its class ParamWrapper) has for each of them A [experts * r, in] and B [out, r * experts], a row of A being (expert,
rank) and a column of B (rank, expert). Where both are adapted, one wrapper stands inside the other: the tensors of
`gate_up_proj` are named `experts.base_layer.lora_A`, those of `down_proj` `experts.lora_A`.

Here gate and up are kernels of their own, each with its adapter. Side by side they are one of the sum of their ranks,
whose B has zeros where a rank is the other's; and such zeros are taken out again in reading.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlean import codec
from jaxlean.errors import ModelError
from jaxlean.hub.names import Names

_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(base_layer\.)?lora_([AB])\.weight")
_PARAMETERS = ("gate_up_proj", "down_proj")  # in the order in which PEFT wraps them, the first one innermost
Parts = dict[tuple[int, bool], dict[str, np.ndarray]]  # (layer, whether inside another) -> A and B


class Wrapped(NamedTuple):
    """The adapter of one parameter."""

    parameter: str  # `model.layers.0.mlp.experts.down_proj`
    tensors: dict[str, np.ndarray]  # by name
    rank: int
    scale: float


def is_of_experts(module: str) -> bool:
    """Whether our module is a kernel of experts."""
    return ".experts." in module


def in_one_parameter(module: str) -> tuple[str, ...]:
    """The modules, of one shape, that PEFT holds together with this one: gate and up of experts."""
    stem, _, last = module.rpartition(".")
    return (f"{stem}.gate", f"{stem}.up") if is_of_experts(module) and last in ("gate", "up") else (module,)


def write(leaves: Mapping[str, np.ndarray], names: Names) -> Iterator[Wrapped]:
    """The adapters of experts among `leaves`, parameter by parameter."""
    layers: dict[int, dict[str, _Adapter]] = {}
    for path in leaves:
        module, _, leaf = path.rpartition(".")
        if leaf == "lora_a" and is_of_experts(module):
            for i in range(leaves[path].shape[0]):
                own = _Adapter(*(leaves[f"{module}.{name}"][i] for name in ("lora_a", "lora_b", "lora_scale")))
                layers.setdefault(names.number(module, i), {})[module.rsplit(".", 1)[-1]] = own
    for layer, found in sorted(layers.items()):
        both = {"gate_up_proj": _side_by_side(found), "down_proj": found.get("down")}
        here = {name: own for name, own in both.items() if own is not None}
        for name, (a, b, scale) in here.items():
            inside = "base_layer." if name == "gate_up_proj" and len(here) == 2 else ""
            module = f"model.layers.{layer}.mlp.experts"
            experts, dim_in, r = a.shape
            first = float(scale[0])
            b = b * (scale / np.float32(first))[:, None, None] if first else b
            tensors = {
                f"{module}.{inside}lora_A.weight": a.transpose(0, 2, 1).reshape(experts * r, dim_in),
                f"{module}.{inside}lora_B.weight": b.transpose(2, 1, 0).reshape(-1, r * experts),
            }
            yield Wrapped(f"{module}.{name}", {n: np.ascontiguousarray(x) for n, x in tensors.items()}, r, first)


class _Adapter(NamedTuple):
    a: np.ndarray  # [experts, in, r]
    b: np.ndarray  # [experts, r, out]
    scale: np.ndarray  # [experts]


def _side_by_side(found: Mapping[str, _Adapter]) -> _Adapter | None:
    """Gate and up as the one parameter that they are in PEFT."""
    if "gate_up" in found:
        return found["gate_up"]
    gate, up = found.get("gate"), found.get("up")
    if gate is None and up is None:
        return None
    one = gate if gate is not None else up
    assert one is not None
    gate, up = (own if own is not None else _Adapter(one.a, np.zeros_like(one.b), one.scale) for own in (gate, up))
    if gate.a.shape == up.a.shape and np.array_equal(gate.a, up.a) and np.array_equal(gate.scale, up.scale):
        return _Adapter(gate.a, np.concatenate([gate.b, up.b], axis=-1), gate.scale)
    # a scale of zero is a layer without an adapter
    ratio = np.divide(up.scale, gate.scale, out=np.ones_like(up.scale), where=gate.scale != 0)[:, None, None]
    b = np.zeros((len(gate.b), gate.b.shape[1] + up.b.shape[1], gate.b.shape[2] + up.b.shape[2]), np.float32)
    b[:, : gate.b.shape[1], : gate.b.shape[2]] = gate.b
    b[:, gate.b.shape[1] :, gate.b.shape[2] :] = up.b * ratio
    return _Adapter(np.concatenate([gate.a, up.a], axis=-1), b, gate.scale)


def collect(name: str, array: np.ndarray, parts: Parts) -> bool:
    """Put a tensor (its name without PEFT's prefix) where `read` looks for it; False if it is not of experts."""
    match = _EXPERTS.fullmatch(name)
    if match is None:
        return False
    parts.setdefault((int(match[1]), match[2] is not None), {})[match[3]] = array.astype(np.float32)
    return True


def read(
    parts: Parts,
    names: Names,
    kernels: Mapping[str, codec.Leaves],
    settings: Mapping[str, Any],
    scale_of: Any,
    file: Any,
) -> dict[str, np.ndarray]:
    """The leaves of the experts' adapters.

    Args:
        parts: as `collect` put them.
        names: of the base.
        kernels: of the base, by module.
        settings: of `adapter_config.json`.
        scale_of: (parameter's name, rank) -> its scale.
        file: for messages.

    Raises:
        ModelError: an adapter that does not fit the base.
    """
    targets = [target.rsplit(".", 1)[-1] for target in settings.get("target_parameters") or ()]
    wrapped = [name for name in _PARAMETERS if name in targets]
    found: dict[str, dict[int, _Adapter]] = {}
    for (layer, inside), own in sorted(parts.items()):
        name = wrapped[0] if inside or len(wrapped) == 1 else "down_proj"
        parameter = f"model.layers.{layer}.mlp.experts.{name}"
        if "A" not in own or "B" not in own:
            raise ModelError(f"lora_A or lora_B is missing: {parameter}", where=file)
        modules = ("down",) if name == "down_proj" else ("gate_up", "gate", "up")
        at = {m: names.at(f"layers.mlp.experts.{m}", layer) for m in modules}
        places = {m: place for m, place in at.items() if place is not None and place[0] in kernels}
        if not places:
            raise ModelError(f"an adapter for experts that the base does not have: {parameter}", where=file)
        shapes = {m: codec.shape(kernels[path]) for m, (path, _) in places.items()}
        experts, dim_in = next(iter(shapes.values()))[1:3]
        dim_out = sum(shape[-1] for shape in shapes.values())
        r = own["A"].shape[0] // experts
        if own["A"].shape != (r * experts, dim_in) or own["B"].shape != (dim_out, r * experts):
            raise ModelError(
                f"an adapter that does not fit its base: {parameter}",
                where=file,
                got=f"lora_A {own['A'].shape}, lora_B {own['B'].shape}",
                wanted=f"lora_A ({experts} * r, {dim_in}), lora_B ({dim_out}, r * {experts})",
            )
        a = own["A"].reshape(experts, r, dim_in).transpose(0, 2, 1)
        b = own["B"].reshape(dim_out, r, experts).transpose(2, 1, 0)
        scale = np.full(experts, scale_of(parameter, r), np.float32)
        start = 0
        for m, (path, index) in places.items():
            found.setdefault(path, {})[index] = _Adapter(a, b[..., start : start + shapes[m][-1]], scale)
            start += shapes[m][-1]
    leaves: dict[str, np.ndarray] = {}
    for module, layers in found.items():
        leaves |= {f"{module}.{leaf}": x for leaf, x in _stacked(layers, codec.shape(kernels[module])).items()}
    return leaves


def _stacked(layers: Mapping[int, _Adapter], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The layers' adapters as one stack, without the ranks that none of them uses; a layer without one gets zeros."""
    num, experts, dim_in, dim_out = shape
    used = {i: own.b.any(axis=(0, 2)) for i, own in layers.items()}
    # of an adapter that has learned nothing all ranks stay
    used = {i: mask if mask.any() else np.ones_like(mask) for i, mask in used.items()}
    rank = max(int(mask.sum()) for mask in used.values())
    a = np.zeros((num, experts, dim_in, rank), np.float32)
    b = np.zeros((num, experts, rank, dim_out), np.float32)
    scale = np.ones((num, experts), np.float32)
    for i, own in layers.items():
        r = int(used[i].sum())
        a[i, ..., :r], b[i, :, :r], scale[i] = own.a[..., used[i]], own.b[:, used[i]], own.scale
    return {"lora_a": a, "lora_b": b, "lora_scale": scale}


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], module: str) -> bool:
    """Whether two adapters of a module change what it computes alike: their ranks may be cut up in other ways."""
    if f"{module}.lora_a" not in theirs:
        return False
    x = np.random.default_rng(0).normal(size=ours[f"{module}.lora_a"].shape[-2])

    def change(leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        a, b, scale = (
            np.asarray(leaves[f"{module}.{name}"], np.float64) for name in ("lora_a", "lora_b", "lora_scale")
        )
        return scale[..., None] * np.einsum("i,...ir,...ro->...o", x, a, b)

    one, other = change(ours), change(theirs)
    return bool(np.allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(one).max(initial=0.0)))
