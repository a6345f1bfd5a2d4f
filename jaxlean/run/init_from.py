"""`lora.init_from`: a run whose adapter starts from one on disk, and not from fresh matrices.

What such an adapter is (rank, alpha, variant, modules, labels of its head) its files say, and the config takes over,
or contradicts and is refused. Nothing else comes along: the optimizer and the learning rate start anew. To go on with
a run that was cut off is `--resume`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlean import codec, tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, RunConfig
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.adapter import read_adapter, trained_over
from jaxlean.hub.adapter_file import SETTINGS, read_settings
from jaxlean.hub.head import is_head
from jaxlean.hub.load import Model
from jaxlean.run.folder import adapter_of
from jaxlean.run.merge import check_base, with_labels_of

# Settings that the files decide, and what PEFT means where they do not state one.
_STATED: dict[str, Any] = {"r": 8, "lora_alpha": 8, "use_rslora": False, "use_dora": False}


def with_start(config: RunConfig) -> RunConfig:
    """The config with what the adapter that it starts from decides; unchanged where it starts from none.

    What it gives it gives again as it is.

    Raises:
        ConfigError: a setting says something else than the adapter's files.
        ModelError: no adapter is there, or one that no run can start from.
        RunError: the folder is that of a run that another process is writing, or that trained a whole model.
    """
    if config.lora is None or config.lora.init_from is None:
        return config
    folder = adapter_of(Path(config.lora.init_from).expanduser())
    stated = read_settings(folder)
    if stated.get("peft_type") != "LORA" or stated.get("trainable_token_indices"):
        raise ModelError(
            "a run starts from an adapter with LoRA matrices, and without rows of new tokens", where=folder,
            got=f"peft_type {stated.get('peft_type')}, trainable_token_indices {stated.get('trainable_token_indices')}",
            fix="merge it into its base (jaxlean merge), and start from that model",
        )  # fmt: skip
    theirs = {key: stated.get(key, default) for key, default in _STATED.items()}
    try:
        own = LoraSection(**theirs)
    except ValueError as error:
        raise ModelError(
            "the settings of the adapter to start from are none of LoRA's", where=folder / SETTINGS, got=_said(theirs),
            wanted="r, a whole number, and lora_alpha, both positive; use_rslora and use_dora, true or false",
        ) from error  # fmt: skip
    ours = {key: getattr(config.lora, key) for key in _STATED if key in config.lora.model_fields_set}
    wanted = {key: getattr(own, key) for key, value in ours.items() if not math.isclose(value, getattr(own, key))}
    if wanted:
        raise ConfigError(
            "lora: settings that are not those of the adapter to start from", where=folder,
            got=_said({key: ours[key] for key in wanted}), wanted=_said(wanted),
            fix=f"{_said(wanted, 'lora.', ' ')}; or leave them out, and the adapter's are taken",
        )  # fmt: skip
    update = {key: getattr(own, key) for key in _STATED} | {"init_from": str(folder)}
    return with_labels_of(folder, config.model_copy(update={"lora": config.lora.model_copy(update=update)}))


def with_adapter(
    config: RunConfig,
    model: Model,
    params: tree.Tree,
    *,
    trains: Callable[[str], bool],
    form: Mapping[str, str],
    shapes: bool = False,
) -> tree.Tree:
    """The base with the adapter that the run starts from, and what that saved whole in the place of the base's own.

    Args:
        config: `with_start`.
        model: its names.
        params: of the base.
        trains: path -> whether it will train.
        form: how the run loads its base (`hub.adapter.trained_over`).
        shapes: only those count.

    Raises:
        ConfigError: the adapter has other modules than the config asks for, or was trained in another way.
        ModelError: it does not fit the base, or holds what this run would not train.
    """
    assert config.lora is not None, "LoRA has settings"
    assert config.lora.init_from is not None, "and these name an adapter"
    folder, here = Path(config.lora.init_from), tree.flatten(params)
    check_base(folder, config)
    held = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in here.items()} if shapes else here
    leaves = tree.flatten(read_adapter(folder, model.names, tree.unflatten(held)))
    if trained_over(folder) != form:
        raise ConfigError(
            "the adapter to start from was trained over its base in another way", where=folder,
            got=_form(form), wanted=_form(trained_over(folder)),
            fix="lora.quantization_aware and train.keep_zeros as they were when it was trained",
        )  # fmt: skip
    kernels = codec.kernels(here)
    modules = sorted(path.removesuffix(".lora_a") for path in leaves if path.endswith(".lora_a"))
    for module in modules:
        lora.check_stack(module, codec.shape(kernels[module]), config.lora)
    if config.lora.target_modules != "all-linear":
        asked = lora.targets(params, config.lora.target_modules, model.names.modules(kernels))
        asked = sorted(module for module in asked if not is_head(module))  # it trains whole
        if asked != modules:
            raise ConfigError(
                "lora.target_modules are not those of the adapter to start from", where=folder,
                got=", ".join(asked), wanted=", ".join(modules),
                fix="leave it out, and the adapter's are taken",
            )  # fmt: skip
    lost = [path for path in leaves if ".lora_" not in path and not trains(path)]
    lost += [module for module in modules if is_head(module)]
    if lost:
        raise ModelError(
            "the adapter to start from has what this run would neither train nor write again", where=folder,
            got=", ".join(sorted(lost)), fix="merge it into its base (jaxlean merge), and start from that model",
        )  # fmt: skip
    return tree.unflatten(here | leaves)


def _said(settings: Mapping[str, Any], prefix: str = "", between: str = ", ") -> str:
    return between.join(f"{prefix}{key}={value}" for key, value in settings.items())


def _form(form: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(form.items())) or "as it is"
