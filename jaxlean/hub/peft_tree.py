"""A PEFT adapter as a tree by itself: without its base, its modules called as PEFT calls them.

What is done to adapters alone (`adapt.average`) needs no base, which whoever does it may not have, and no family that
is known here. `model.layers.0.self_attn.q_proj` has the leaves `lora_a` [in, r], `lora_b` [r, out], `lora_scale` [] and
(DoRA) `lora_magnitude` as it lies in the file; a parameter of experts (`...mlp.experts.down_proj`) has them with a
leading dim of experts. Any other tensor trained whole, and is a leaf under its own name.

Of a convolution `lora_a` is [in * height * width, r]. `hub.expert_adapter` says how experts lie in the file.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import trained_over
from jaxlean.hub.adapter_file import PREFIX, SETTINGS, SUFFIXES, TENSORS, alpha_of, rank_of, read_tensors, scale_of
from jaxlean.hub.files import write_tensors

# In the order in which PEFT wraps them, as it finds them in the module: the first one innermost.
_PARAMETERS = ("gate_up_proj", "down_proj")
# What makes an adapter add something else than scale * B @ A, or to another base than the one it names.
_MORE = (
    *("lora_bias", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config"),
    "alora_invocation_tokens",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftTree:
    """An adapter.

    Args:
        settings: its `adapter_config.json`.
        leaves: the tree.
        kernels: of each module that is a convolution, what `lora_A` and `lora_B` have beyond two dims.
        parameters: modules that are parameters to PEFT (`target_parameters`): experts, routers.
        over: how its base is to be loaded (`hub.adapter.trained_over`).
    """

    settings: dict[str, Any]
    leaves: tree.Tree = field(repr=False)
    kernels: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    parameters: frozenset[str]
    over: dict[str, Any]

    @cached_property
    def modules(self) -> list[str]:
        """Those with LoRA matrices, parameters included."""
        return sorted(path.removesuffix(".lora_a") for path in tree.flatten(self.leaves) if path.endswith(".lora_a"))


def read(folder: Path) -> PeftTree:
    """Read an adapter.

    Raises:
        ModelError: there is none, it is broken, or it adds something else than LoRA or DoRA do.
    """
    settings, tensors = read_tensors(folder)
    file = folder / TENSORS
    _check_kind(settings, folder / SETTINGS)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    leaves: dict[str, Any] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(PREFIX)
        if inner == name:
            raise ModelError(f"an adapter tensor without PEFT's prefix: {name}", where=file, wanted=f"{PREFIX}...")
        # some PEFT versions write lora_magnitude_vector.weight
        short = inner.removesuffix(".weight") if inner.endswith("_vector.weight") else inner
        leaf = next((leaf for leaf, suffix in SUFFIXES.items() if short.endswith(f".{suffix}")), None)
        if leaf is not None:
            pairs.setdefault(short.removesuffix(f".{SUFFIXES[leaf]}"), {})[leaf] = tensor
        elif ".lora_" in inner:
            raise ModelError(f"an adapter tensor that is not supported: {name}", where=file, wanted="LoRA or DoRA")
        else:
            leaves[inner] = tensor
    if not pairs and not leaves:
        raise ModelError("the adapter holds no tensor", where=file)
    kernels, parameters = {}, set()
    for wrapper, own in pairs.items():
        if "lora_a" not in own or "lora_b" not in own:
            raise ModelError(f"lora_A or lora_B is missing: {wrapper}", where=file)
        parameter = _parameter(wrapper, settings, file)
        module = parameter or wrapper
        a, b = own["lora_a"], own["lora_b"]
        if a.ndim > 2:
            kernels[module] = a.shape[2:], b.shape[2:]
            a = a.reshape(len(a), -1)
            b = b.reshape(b.shape[:2]) if b.size == b.shape[0] * b.shape[1] else b
        r = int(rank_of(settings, module) or len(a)) if parameter else len(a)
        if a.ndim != 2 or b.ndim != 2 or b.shape[1] != len(a) or r < 1 or len(a) % r:
            raise ModelError(
                f"lora_A and lora_B do not fit each other: {module}", where=file,
                got=f"lora_A {own['lora_a'].shape}, lora_B {own['lora_b'].shape}, rank {r}",
            )  # fmt: skip
        if parameter:
            parameters.add(module)
        experts = len(a) // r
        if experts == 1:
            leaves[f"{module}.lora_a"], leaves[f"{module}.lora_b"] = a.T, b.T
        else:  # a row of A is (expert, rank), a column of B (rank, expert)
            leaves[f"{module}.lora_a"] = a.reshape(experts, r, -1).transpose(0, 2, 1)
            leaves[f"{module}.lora_b"] = b.reshape(len(b), r, experts).transpose(2, 1, 0)
        leading = () if experts == 1 else (experts,)
        leaves[f"{module}.lora_scale"] = np.full(leading, scale_of(settings, module, r), np.float32)
        if "lora_magnitude" in own:
            leaves[f"{module}.lora_magnitude"] = own["lora_magnitude"]
    return PeftTree(settings, tree.unflatten(leaves), kernels, frozenset(parameters), trained_over(folder))


def write(folder: Path, adapter: PeftTree) -> None:
    """Write an adapter into a folder that is there, and read it back.

    Ranks and scales are those of the leaves: what `settings` says of them is written anew.

    Raises:
        ModelError: what was read back is not what was written.
        OSError: the disk is full.
    """
    tensors = {PREFIX + name: np.ascontiguousarray(tensor) for name, tensor in _tensors(adapter)}
    stated = adapter.settings | _ranks(adapter)
    said = {f"jaxlean.{key}": value for key, value in adapter.over.items()}
    write_tensors(folder / TENSORS, tensors, **said)
    (folder / SETTINGS).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    back, ours = tree.flatten(read(folder).leaves), tree.flatten(adapter.leaves)
    wrong = next(
        (
            path for path in back.keys() | ours.keys()
            if path not in back or path not in ours or not _same(back[path], ours[path])
        ),
        None,
    )  # fmt: skip
    if wrong is not None:
        raise ModelError(
            f"the adapter read back is not the one written: {wrong}", where=folder, fix="is the disk sound?"
        )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    # a scale goes through an alpha, which is rounded to a round number
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-6, atol=0))


def _tensors(adapter: PeftTree) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in tree.flatten(adapter.leaves).items():
        module, _, name = path.rpartition(".")
        if name == "lora_scale":
            continue
        if name not in SUFFIXES:
            yield path, leaf
            continue
        tensor = leaf
        if name != "lora_magnitude":
            tensor = leaf.T if leaf.ndim == 2 else _of_experts(leaf, name)
            if module in adapter.kernels:
                a_dims, b_dims = adapter.kernels[module]
                tensor = tensor.reshape(len(tensor), -1, *(a_dims if name == "lora_a" else b_dims))
        yield f"{_wrapper(module, adapter.parameters)}.{SUFFIXES[name]}", tensor


def _of_experts(leaf: np.ndarray, name: str) -> np.ndarray:
    """[experts, in, r] -> [experts * r, in], or [experts, r, out] -> [out, r * experts]."""
    if name == "lora_a":
        return leaf.transpose(0, 2, 1).reshape(-1, leaf.shape[1])
    return leaf.transpose(2, 1, 0).reshape(leaf.shape[2], -1)


def _ranks(adapter: PeftTree) -> dict[str, Any]:
    """What `adapter_config.json` says of ranks and scales: those that most modules have, and the others by name."""
    leaves = tree.flatten(adapter.leaves)
    if not adapter.modules:
        return {}
    ranks = {module: leaves[f"{module}.lora_a"].shape[-1] for module in adapter.modules}
    scales = {module: float(np.ravel(leaves[f"{module}.lora_scale"])[0]) for module in adapter.modules}
    alphas = {module: alpha_of(scales[module], rank, False) for module, rank in ranks.items()}
    counted = Counter((ranks[module], alphas[module]) for module in ranks)
    r, alpha = max(counted, key=lambda pair: (counted[pair], pair))
    return {
        "r": r, "lora_alpha": alpha, "use_rslora": False,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
    }  # fmt: skip


def _check_kind(settings: Mapping[str, Any], file: Path) -> None:
    for key in _MORE:
        if settings.get(key):
            raise ModelError(
                f"an adapter that is more than LoRA or DoRA: {key}", where=file, got=settings[key], wanted="none"
            )
    start = str(settings.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise ModelError(
            "an adapter over a base that its own start has changed, and not over the one it names", where=file,
            got=f"init_lora_weights {start}",
            fix="PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...) makes a plain one of it",
        )  # fmt: skip


def _wrapped(module: str, parameters: Collection[str]) -> list[str]:
    """The parameters of a module among some, in the order in which PEFT wraps them."""

    def place(name: str) -> int:
        last = name.rpartition(".")[2]
        return _PARAMETERS.index(last) if last in _PARAMETERS else -1

    return sorted((name for name in parameters if name.rpartition(".")[0] == module), key=place)


def _parameter(wrapper: str, settings: Mapping[str, Any], file: Path) -> str | None:
    """The parameter whose wrapper a name is (`mlp.experts.base_layer`); None for a module that is a linear layer."""
    module, depth = wrapper, 0
    while module.endswith(".base_layer"):
        module, depth = module.removesuffix(".base_layer"), depth + 1
    here: set[str] = set()
    for target in settings.get("target_parameters") or ():
        stem, _, last = target.rpartition(".")
        if f".{module}".endswith(f".{stem or 'experts'}"):
            here.add(f"{module}.{last}")
    if not here:
        return None
    if len(here) > 1 and not all(name.rpartition(".")[2] in _PARAMETERS for name in here):
        raise ModelError(
            f"several parameters of one module, whose order is not known: {module}", where=file,
            got=", ".join(sorted(name.rpartition(".")[2] for name in here)), wanted=", ".join(_PARAMETERS),
        )  # fmt: skip
    ordered = _wrapped(module, here)
    if depth >= len(ordered):
        raise ModelError(f"an adapter of more parameters than target_parameters has: {wrapper}", where=file)
    return ordered[-1 - depth]


def _wrapper(module: str, parameters: frozenset[str]) -> str:
    """The name under which PEFT has a module's matrices; the inverse of `_parameter`."""
    if module not in parameters:
        return module
    stem = module.rpartition(".")[0]
    ordered = _wrapped(stem, parameters)
    return stem + ".base_layer" * (len(ordered) - 1 - ordered.index(module))
