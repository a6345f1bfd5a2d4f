"""The settings of several PEFT adapters over one base as those of one adapter; refused where there is no such one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlean.errors import ModelError
from jaxlean.hub.peft_tree import PeftTree

# What must be the same in all, and why.
_SAME = {
    "peft_type": "adapters of different kinds",
    "task_type": "adapters for different tasks",
    "layer_replication": "adapters over models whose layers are repeated in different ways",
    "trainable_token_indices": "adapters that train rows of different tokens",
    "token_indices": "adapters that train rows of different tokens",
}
# What chooses modules beside `target_modules`.
_CHOOSES = ("layers_to_transform", "layers_pattern", "exclude_modules")


def check_alike(adapters: Sequence[PeftTree], names: Sequence[str]) -> None:
    """Refuse adapters that are not of one kind, for one task, over a base that is loaded in one way.

    Raises:
        ModelError: names the two that differ, and by what.
    """
    first, called = adapters[0], names[0]
    forms: dict[str, tuple[Any, str]] = {}
    for one, name in zip(adapters, names, strict=True):
        for key, what in _SAME.items():
            ours, theirs = first.settings.get(key), one.settings.get(key)
            unsaid = key == "task_type" and None in (ours, theirs)
            if (ours or None) != (theirs or None) and not unsaid:
                raise ModelError(what, where=name, got=f"{key} {theirs}", wanted=f"{ours}, as in {called}")
        if first.over != one.over:
            raise ModelError(
                "adapters that were trained over the base in different ways", where=name, got=_over(one),
                wanted=f"{_over(first)}, as in {called}",
            )  # fmt: skip
        for module in one.modules:
            form = one.kernels.get(module)
            known, where = forms.setdefault(module, (form, name))
            if form != known:
                raise ModelError(
                    f"adapters over different bases: {module}", where=name, got=_form(form),
                    wanted=f"{_form(known)}, as in {where}",
                )  # fmt: skip
    parameters = {module for one in adapters for module in one.parameters}
    for parameter in sorted(parameters):
        module = parameter.rpartition(".")[0]
        if module in forms:
            raise ModelError(
                f"one adapter has a matrix as a module, another as a parameter: {module}", where=forms[module][1],
                got=f"target_modules {module}", wanted=f"target_parameters {parameter}, or the other way in all",
            )  # fmt: skip


def _form(beyond: tuple[tuple[int, ...], tuple[int, ...]] | None) -> str:
    return "a linear layer" if beyond is None else f"a convolution of {' x '.join(map(str, beyond[0]))}"


def _over(adapter: PeftTree) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(adapter.over.items())) or "as it is"


def apart(adapters: Sequence[PeftTree], names: Sequence[str]) -> Iterator[str]:
    """The names of adapters that share no module with any other, though they have some: perhaps of another base."""
    for one, name in zip(adapters, names, strict=True):
        others = {module for other in adapters if other is not one for module in other.modules}
        if one.modules and others and others.isdisjoint(one.modules):
            yield name


def joined(adapters: Sequence[PeftTree], *, base: str | None) -> dict[str, Any]:
    """The `adapter_config.json` of an adapter that has the modules of all of them; ranks and scales are to follow.

    Args:
        adapters: that are alike (`check_alike`).
        base: for `base_model_name_or_path`.
    """
    every = [adapter.settings for adapter in adapters]
    task = next((stated["task_type"] for stated in every if stated.get("task_type")), None)
    parameters = sorted({name for stated in every for name in stated.get("target_parameters") or ()})
    saved = sorted({name for stated in every for name in stated.get("modules_to_save") or ()})
    found = dict(every[0]) | {
        "base_model_name_or_path": base,
        "task_type": task,
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
    if found.get("peft_type") != "LORA":
        return found
    return found | _targets(adapters) | {
        "target_parameters": parameters or None,
        "use_dora": any(stated.get("use_dora") for stated in every),
        "init_lora_weights": True,
    }  # fmt: skip


def _targets(adapters: Sequence[PeftTree]) -> dict[str, Any]:
    """What chooses the modules: as it was, where all say the same; lists joined; else every module by its name."""
    chosen = [_choice(adapter.settings) for adapter in adapters]
    if all(choice == chosen[0] for choice in chosen):
        return {}
    lists = [adapter.settings.get("target_modules") for adapter in adapters]
    if all(isinstance(names, list) for names in lists) and all(choice[1:] == chosen[0][1:] for choice in chosen):
        return {"target_modules": sorted({name for names in lists for name in names or ()})}
    modules = {module for adapter in adapters for module in adapter.modules if module not in adapter.parameters}
    return {"target_modules": sorted(modules)} | dict.fromkeys(_CHOOSES)


def _choice(settings: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    for key in ("target_modules", *_CHOOSES):
        value = settings.get(key)
        found.append(sorted(value) if isinstance(value, list) else value)
    return found
