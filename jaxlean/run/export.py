"""`jaxlean export`: what a run trained, in the form that it is served in, read back, with a card."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from jaxlean import config as settings
from jaxlean import tree
from jaxlean.compress.quantize import SCHEMES
from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError, ModelError, RunError
from jaxlean.hub.adapter import read_adapter, trained_over
from jaxlean.hub.files import locate, read_json
from jaxlean.hub.load import load
from jaxlean.hub.write import write_model
from jaxlean.run.card import card
from jaxlean.run.job import head_of, resolved
from jaxlean.run.lock import FolderLock
from jaxlean.run.merge import check_base, wide, with_labels_of
from jaxlean.run.quantize import compare, quantize_model, stored_dtype, tensor_bytes, whole_model
from jaxlean.run.stablehlo import write_stablehlo
from jaxlean.run.staging import check_output, staged
from jaxlean.run.units import show_bytes
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh

Form = Literal["peft", "hf", "w8a8", "w8a16", "w4a16", "stablehlo"]
FORMS: tuple[str, ...] = get_args(Form)
_LENGTH = 128  # tokens of a StableHLO program's rows, where nobody says how many and the model takes as many


def export(
    run: Path, output: Path, form: str, overrides: list[str] | None = None, *, length: int | None = None
) -> None:
    """Write what a run trained.

    Args:
        run: its folder: `config.yaml`, and `adapter` or `model`.
        output: folder to be made.
        form: peft, the adapter; hf, a whole model; w8a8, w8a16, w4a16, one in fewer bits; stablehlo, a program.
        overrides: of its config, such as `quantize.method=awq`.
        length: of stablehlo: tokens of a row.

    Raises:
        UserError: what the user can mend; nothing is written then.
    """
    if form not in FORMS:
        raise ConfigError("--format is unknown", got=form, wanted=", ".join(FORMS))
    if length is not None and form != "stablehlo":
        raise ConfigError("--length is for --format stablehlo", got=f"--format {form}", fix="leave it out")
    check_output(output)
    _check_overrides(form, overrides or [])
    config, adapter = _result(run, overrides)
    if form in SCHEMES:
        config = config.model_copy(update={"quantize": config.quantize.model_copy(update={"scheme": form})})
    trained = config
    if adapter is None:  # all of it trained: the run's model is the one to go on from
        changed = {"path": str(run / "model"), "architecture": None, "new_tokens": None, "revision": None}
        config = config.model_copy(update={"lora": None, "model": config.model.model_copy(update=changed)})
    else:
        check_base(adapter, config)
    use_cache(config.compilation_cache)
    summary = read_json(run / "summary.json") if (run / "summary.json").exists() else {}

    def finish(folder: Path, quantized: dict[str, Any] | None = None, length: int | None = None) -> None:
        text = card(
            trained, summary, name=output.name, form=form, num_bytes=_bytes(folder),
            bytes_before=_base_bytes(trained), quantized=quantized, length=length,
        )  # fmt: skip
        (folder / "README.md").write_text(text, encoding="utf-8")
        (folder / "run_config.yaml").write_text(settings.dump(trained), encoding="utf-8")

    if form in SCHEMES:
        quantize_model(config, output, adapter=adapter, finish=finish)
        return
    with staged(output) as folder:
        _write(config, adapter, folder, form, finish, length)
    print(f"{form}: {show_bytes(_bytes(output))}: {output}")


def _check_overrides(form: str, overrides: list[str]) -> None:
    """Refuse settings that would do nothing. Raises: ConfigError."""
    for override in overrides:
        key, _, value = override.partition("=")
        if form not in SCHEMES and key.partition(".")[0] in ("quantize", "calibration"):
            raise ConfigError(f"--format {form} is not quantized", got=override, fix="--format w8a8, w8a16 or w4a16")
        if key == "quantize.scheme" and value != form:
            raise ConfigError(f"--format {form} says the scheme", got=override, fix="one of the two")


def _result(run: Path, overrides: list[str] | None) -> tuple[RunConfig, Path | None]:
    """(the run's config, its adapter; None where it trained a whole model)."""
    if not (run / "config.yaml").exists():
        raise RunError("no run lies there", where=run, wanted="its output_dir, with config.yaml")
    FolderLock(run).check()  # what is being trained has no result yet, and what is being replaced soon none any more
    config = settings.load(run / "config.yaml", overrides)
    if (run / "adapter").is_dir():
        return config, run / "adapter"
    if (run / "model").is_dir():
        return config, None
    raise RunError(
        "the run has no result yet", where=run, wanted="a folder adapter or model, which it writes at its end",
        fix="jaxlean finetune ... --resume goes on with it",
    )  # fmt: skip


def _write(
    config: RunConfig, adapter: Path | None, folder: Path, form: str, finish: Callable[..., None], length: int | None
) -> None:
    config = resolved(with_labels_of(adapter, config), trains=False)
    mesh = make_mesh(devices=jax.devices()[:1])
    if form == "peft":
        if adapter is None:
            raise RunError("the run trained a whole model, and no adapter", fix="--format hf")
        if trained_over(adapter):
            raise RunError(
                "PEFT would add the adapter to its base, and leave out what it was trained with", where=adapter,
                got="train.keep_zeros" if config.train.keep_zeros else "lora.quantization_aware", fix="--format hf",
            )  # fmt: skip
        shutil.copytree(adapter, folder)
        model = load(str(config.model.path), config.model.dtype, mesh, **head_of(config))
        ours, theirs = (tree.flatten(read_adapter(path, model.names, model.params)) for path in (adapter, folder))
        if ours.keys() != theirs.keys() or not all(np.array_equal(ours[path], theirs[path]) for path in ours):
            raise ModelError("the adapter was read back as another than was written", where=folder)
        finish(folder)
        return
    model = wide(whole_model(config, mesh, adapter))
    if form == "hf":
        write_model(model, folder, dtype=stored_dtype(model, config))
        compare(load(folder, "float32", mesh, **head_of(config)), model, folder)
    else:
        folder.mkdir()
        longest = model.config.max_position_embeddings
        length = min(_LENGTH, longest) if length is None else length
        if not 1 < length <= longest:
            raise ConfigError("no length that the model takes", where="--length", got=length, wanted=f"2 to {longest}")
        write_stablehlo(model, folder, length=length)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    finish(folder, length=length)


def _bytes(folder: Path) -> int:
    return tensor_bytes(folder) or sum(file.stat().st_size for file in folder.glob("*.npz"))


def _base_bytes(config: RunConfig) -> int | None:
    """Bytes of the base's tensors; None where there is none, or it is gone."""
    if config.model.path is None:
        return None
    try:
        return tensor_bytes(locate(config.model.path, revision=config.model.revision)) or None
    except ModelError:
        return None
