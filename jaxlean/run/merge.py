"""`jaxlean merge`: fold an adapter into its base and write the model that results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlean import codec, tree
from jaxlean.adapt import lora, vocabulary
from jaxlean.adapt.quantize import dequantize
from jaxlean.config import RunConfig
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import read_adapter, read_settings, room, trained_over
from jaxlean.hub.files import read_json
from jaxlean.hub.head import PEFT_TASKS
from jaxlean.hub.load import Model, load, load_tokenizer
from jaxlean.hub.vocabulary import resized
from jaxlean.hub.write import write_model
from jaxlean.models.quantized import Matmuls
from jaxlean.run.staging import check_output, staged


def load_adapted(model: Model, adapter: Path) -> Model:
    """The model with an adapter from disk beside its kernels, and what the adapter saved whole in its place.

    One with rows of new tokens brings its tokenizer along, where it lies beside it.
    """
    size = room(adapter, model.names)
    if size:
        model = resized(model, size)
    leaves = read_adapter(adapter, model.names, model.params)
    new = tree.flatten(leaves)
    other = model.with_params(tree.merge(tree.split(model.params, lambda path: path not in new)[0], leaves))
    if size and (adapter / "tokenizer.json").exists():  # the one that has the new tokens
        other.tokenizer = load_tokenizer(str(adapter))
    return other


def merge(adapter: Path, folder: Path, *, base: str | None = None, dtype: str = "auto") -> None:
    """Write the model that computes what base and adapter compute together.

    Args:
        adapter: PEFT adapter folder.
        folder: where the merged model is written.
        base: id or folder; default: the one the adapter names.
        dtype: of the written tensors; `auto` keeps the base's own.

    Raises:
        ModelError: the base is not known or not found, or the adapter does not fit it.
        RunError: the output folder is not empty, or cannot be written.
    """
    check_output(folder)
    stated = read_settings(adapter)
    if base is None:
        base = stated.get("base_model_name_or_path")
        if not base:
            raise ModelError("the adapter does not name its base", where=adapter, fix="name it with --base")
    # float32 to add in, whatever is written: a small change would be lost in bfloat16
    model = load(base, "float32", **trained_over(adapter), **_head_of(adapter, stated))
    held = model.hf_config.get("dtype") or model.hf_config.get("torch_dtype") or "float32" if dtype == "auto" else dtype
    whole = merged(load_adapted(model, adapter))
    with staged(folder) as part:
        write_model(whole, part, dtype=held)


def merged(model: Model) -> Model:
    """The model with its adapter, and the rows of its new tokens, folded in.

    Of a quantized base it is a wide one, since what an adapter adds is less than a step of its numbers; but where the
    adapter was rounded with them in training (`lora.quantization_aware`), it is a quantized one again. Zeros that were
    kept in training (`train.keep_zeros`) stay.
    """
    if model.matmul in ("aware", "aware_w8a8"):
        matmul: Matmuls = "default" if model.matmul == "aware" else "stored"
        return replace(model, matmul=matmul).with_params(lora.merge_on_grid(vocabulary.merge(model.params)))
    if model.matmul == "sparse":
        whole = lora.merge(vocabulary.merge(model.params), keep_zeros=True)
        return replace(model, matmul="default").with_params(whole)
    model = wide(model)
    return model.with_params(lora.merge(vocabulary.merge(model.params)))


def wide(model: Model) -> Model:
    """The model with plain kernels, of what quantized ones stand for."""
    if codec.is_quantized(tree.flatten(model.params)):
        model = replace(model, matmul="default").with_params(dequantize(model.params, model.dtype))
    return model


def check_base(adapter: Path, config: RunConfig) -> None:
    """Refuse an adapter that was trained on another base than the config names.

    Raises:
        ModelError: names both.
    """
    stated, path = read_settings(adapter).get("base_model_name_or_path"), config.model.path
    if not stated or path is None or stated == path:
        return
    folders = [Path(name).expanduser().resolve() for name in (stated, path)]
    if folders[0] == folders[1]:
        return
    raise ModelError(
        "the adapter was trained on another base", where=adapter, got=f"a base {stated}", wanted=path,
        fix=f"model.path={stated}; or, where both are the same model, write its name of today into adapter_config.json",
    )  # fmt: skip


def _head_of(adapter: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What `hub.load` is to be told of the head that an adapter was trained under (`job.head_of`).

    Raises:
        ModelError: it has labels, and nothing says which.
    """
    task = next((ours for ours, theirs in PEFT_TASKS.items() if theirs == stated.get("task_type")), "generate")
    if task == "generate":
        return {}
    if task == "embed":
        return {"task": task, "labels": None}
    labels = labels_of(adapter)
    if labels is None:
        raise ModelError(
            "the adapter does not say what its labels are", where=adapter / "config.json", wanted="id2label",
            fix="copy the config.json of the model that it was trained on there, with its id2label",
        )  # fmt: skip
    return {"task": task, "labels": labels}


def labels_of(adapter: Path) -> list[str] | None:
    """The labels that an adapter was trained for, in the order of their ids; None where no file beside it says."""
    file = adapter / "config.json"
    named = read_json(file).get("id2label") if file.exists() else None
    return [str(named[key]) for key in sorted(named, key=int)] if named else None


def with_labels_of(adapter: Path | None, config: RunConfig) -> RunConfig:
    """The config with the labels that its adapter was trained for, if it says which: what the head's numbers stand for.

    Raises:
        ModelError: the folder holds no adapter, or the config names other labels, or the same in another order.
    """
    if adapter is None or config.task not in ("classify", "tag"):
        return config
    read_settings(adapter)  # the folder of a run has a config of labels too, and is none of an adapter
    labels, named = labels_of(adapter), config.data.labels
    if labels is None or named == labels:
        return config
    if named is not None:
        raise ModelError(
            "the adapter was trained for other labels than data.labels, or for another order of them", where=adapter,
            got=_shown(labels), wanted=_shown(named),
            fix="the adapter that was trained for them; or leave out data.labels, and the adapter's are taken",
        )  # fmt: skip
    return config.model_copy(update={"data": config.data.model_copy(update={"labels": labels})})


def _shown(labels: Sequence[str], most: int = 6) -> str:
    return f"{len(labels):,} labels: {', '.join(labels[:most])}" + (", ..." if len(labels) > most else "")
