"""`jaxlean merge`: fold an adapter into its base and write the model that results."""

from pathlib import Path

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.errors import ModelError, RunError
from jaxlean.hub.adapter import read_adapter
from jaxlean.hub.files import read_json
from jaxlean.hub.load import Model, load
from jaxlean.hub.write import write_model


def load_adapted(model: Model, adapter: Path) -> Model:
    """The model with an adapter from disk beside its kernels."""
    leaves = read_adapter(adapter, model.family, model.params)
    return model.with_params(tree.merge(model.params, leaves))


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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise RunError(f"the output folder {what}", where=folder, fix="choose another, or remove it")
    if base is None:
        if not adapter.is_dir():
            raise ModelError("no such adapter folder", where=adapter)
        base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise ModelError("the adapter does not name its base", where=adapter, fix="name it with --base")
    # float32 to add in, whatever is written: a small change would be lost in bfloat16
    model = load(base, "float32")
    held = model.hf_config.get("dtype") or model.hf_config.get("torch_dtype") or "float32" if dtype == "auto" else dtype
    merged = lora.merge(load_adapted(model, adapter).params)
    try:
        write_model(model.with_params(merged), folder, dtype=held)
    except OSError as error:
        raise RunError("the merged model cannot be written", where=folder, got=error) from error
