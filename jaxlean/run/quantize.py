"""`jaxlean quantize`: calibrate, quantize, measure, write, read back."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxlean import codec, tree
from jaxlean.compress.quantize import SCHEMES, How, Rounded, check, quantize
from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.adapter import trained_over
from jaxlean.hub.compressed import Scheme, scheme_of
from jaxlean.hub.load import Model, load
from jaxlean.hub.write import write_model
from jaxlean.run.calibration import calibration_batches
from jaxlean.run.evaluate import evaluator_of
from jaxlean.run.generate import chat_template
from jaxlean.run.job import head_of, resolved
from jaxlean.run.merge import check_base, load_adapted, merged, with_labels_of
from jaxlean.run.staging import check_output, staged
from jaxlean.run.summary import Evaluation
from jaxlean.run.units import show_bytes
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh

REPORT = "quantization.json"


def quantize_model(
    config: RunConfig,
    output: Path,
    *,
    adapter: Path | None = None,
    finish: Callable[[Path, dict[str, Any]], None] = lambda folder, report: None,
) -> dict[str, Any]:
    """Quantize the model of a config, and write it as Hugging Face's compressed-tensors.

    Args:
        config: `model`, `data`, `calibration`, `quantize` and `eval` count.
        output: folder to be made.
        adapter: PEFT adapter folder, folded in before.
        finish: writes what else belongs into the folder, given what `quantization.json` holds.

    Returns:
        what `quantization.json` holds.

    Raises:
        UserError: what the user can mend; nothing is written then.
    """
    console = Console()
    how = how_of(config)
    if adapter is None and config.model.quantization != "none":
        raise ConfigError(
            "jaxlean quantize starts from the wide model", where="model.quantization", got=config.model.quantization,
            fix="leave it out: quantize.scheme says what the model is held in",
        )  # fmt: skip
    check_output(output)
    use_cache(config.compilation_cache)
    mesh = make_mesh(devices=jax.devices()[:1])  # layer by layer, on one device
    config = resolved(with_labels_of(adapter, config), trains=False)
    # float32 to calibrate in, whatever is written: what smoothing moves must not be rounded on its way
    model = whole_model(config, mesh, adapter)
    done = adapter is not None and codec.is_quantized(tree.flatten(model.params))
    if done:
        _check_scheme(model, how, config.quantize.group_size)
    else:
        check(model, how)
    tokenizer, needs_data = model.tokenizer, how.needs_data and not done
    batches = calibration_batches(config, tokenizer, vocab_size=model.config.vocab_size) if needs_data else []
    measured = bool(config.data.eval or config.data.eval_fraction)

    def quality(of: Model) -> Evaluation | None:
        return evaluator_of(config, of, tokenizer, mesh)(of, {}, of.params) if measured else None

    if measured:
        console.print("measuring the model as it is", highlight=False)
    before = quality(model)
    started, layers = time.perf_counter(), model.config.num_layers

    def say(rounded: Rounded) -> None:
        if console.is_terminal:
            console.print(f"layer {rounded.layer + 1} of {layers}: {rounded.module}", end="\r", highlight=False)

    quantized, errors = (model, []) if done else quantize(model, how, batches, say=say)
    seconds, dtype = time.perf_counter() - started, stored_dtype(model, config)
    with staged(output) as folder:
        write_model(quantized, folder, dtype=dtype)
        again = load(folder, "float32", mesh, attention=config.model.attention, **head_of(config))
        compare(again, quantized, folder)
        report = {
            "base": config.model.path, "adapter": None if adapter is None else str(adapter),
            "scheme": config.quantize.scheme, "method": "training" if done else how.method,
            "group_size": scheme_of(quantized.params, quantized.names, activations=False).group_size,
            "smoothquant_alpha": ("auto" if how.alpha is None else how.alpha) if how.smooths else None,
            "calibration_rows": sum(len(batch["tokens"]) for batch in batches),
            "calibration_tokens": int(sum((batch["segments"] > 0).sum() for batch in batches)),
            "seconds": round(seconds, 1), "bytes": tensor_bytes(folder), "bytes_before": _bytes(model, dtype),
            "eval_before": before, "eval_after": quality(again),
            "linear_layers": [rounded._asdict() for rounded in errors],
        }  # fmt: skip
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        finish(folder, report)
    _print(console, report, errors, output)
    return report


def how_of(config: RunConfig) -> How:
    """What the config says, its defaults filled in."""
    wanted = config.quantize
    scheme = SCHEMES[wanted.scheme]
    if wanted.group_size is not None:
        scheme = replace(scheme, group_size=wanted.group_size)
    if scheme.activations and scheme.group_size is not None:
        raise ModelError(
            "w8a8 has one scale a column", where="quantize.group_size", got=scheme.group_size, fix="leave it out"
        )
    if not scheme.activations and wanted.smoothquant_alpha not in ("auto", 0):
        raise ConfigError(
            f"{wanted.scheme} leaves activations as they are: there is nothing to smooth",
            where="quantize.smoothquant_alpha", got=wanted.smoothquant_alpha,
            fix="leave it out, or quantize.scheme=w8a8",
        )  # fmt: skip
    alpha = None if wanted.smoothquant_alpha == "auto" else wanted.smoothquant_alpha
    if wanted.method == "rtn" and alpha is None:
        alpha = 0.0  # without data
    return How(scheme, wanted.method, alpha, tuple(wanted.ignore), wanted.max_error)


def whole_model(config: RunConfig, mesh: jax.sharding.Mesh, adapter: Path | None) -> Model:
    """The model of a config in float32, an adapter folded in: wide, but where the adapter was trained to be rounded.

    Raises:
        UserError: no model is named, it cannot be loaded, or the adapter is that of another.
    """
    if config.model.path is None:
        raise ModelError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    named = config.model
    model = load(
        config.model.path, "float32", mesh, revision=named.revision, tokenizer=named.tokenizer,
        attention=named.attention, **(trained_over(adapter) if adapter is not None else {}), **head_of(config),
    )  # fmt: skip
    if adapter is not None:
        check_base(adapter, config)
        model = merged(load_adapted(model, adapter))
    template = chat_template(config.model)
    if template is not None:
        model.tokenizer.chat_template = template
    return model


def _check_scheme(model: Model, how: How, size: int | None) -> None:
    """What was trained rounded is of the scheme that it was rounded to; `size` of groups, where the config names it."""
    held = scheme_of(model.params, model.names, activations=model.matmul == "stored")
    if (how.scheme.bits, how.scheme.activations) != (held.bits, held.activations) or (
        size is not None and size != held.group_size
    ):
        raise ConfigError(
            "the adapter was trained for other numbers (lora.quantization_aware)",
            got=_said(how.scheme, size), wanted=_said(held, held.group_size),
            fix="the scheme of its base; or --format hf, and quantize that anew",
        )  # fmt: skip


def _said(scheme: Scheme, size: int | None) -> str:
    groups = f" in groups of {size}" if size is not None else ""
    return f"w{scheme.bits}a{8 if scheme.activations else 16}{groups}"


def compare(got: Model, wanted: Model, folder: Path) -> None:
    """Refuse a folder from which something else was read than was written: its integers must be the same.

    Raises:
        ModelError: names the first tensor that differs.
    """
    theirs = tree.flatten(got.params)
    for path, leaf in tree.flatten(wanted.params).items():
        there = theirs.get(path)
        if there is None or there.shape != leaf.shape or there.dtype != leaf.dtype:
            same = False
        elif jnp.issubdtype(leaf.dtype, jnp.integer) or path.endswith((".kernel_scale", ".kernel_scales")):
            same = bool((there == leaf).all())
        else:  # rounded to what the file holds
            same = bool(jnp.allclose(there, leaf, rtol=2**-8, atol=1e-30))
        if not same:
            raise ModelError("a tensor was read back as another than was written", where=f"{folder}: {path}")


def tensor_bytes(folder: Path) -> int:
    """Bytes of a model's safetensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _bytes(model: Model, dtype: str) -> int:
    """Of its tensors, were all of them wide."""
    return (
        sum(codec.num_params(path, leaf) for path, leaf in tree.flatten(model.params).items())
        * np.dtype(dtype).itemsize
    )


def stored_dtype(model: Model, config: RunConfig) -> str:
    """What is written: `model.save_dtype`, or what the base's own files hold."""
    if config.model.save_dtype != "auto":
        return config.model.save_dtype
    return model.hf_config.get("dtype") or model.hf_config.get("torch_dtype") or "float32"


def _print(console: Console, report: dict[str, Any], errors: Sequence[Rounded], folder: Path) -> None:
    modules = list(dict.fromkeys(rounded.module for rounded in errors))
    if not errors:
        console.print("the adapter was trained rounded: its numbers are those of the base", highlight=False)
    # without calibration rows nobody knows the outputs
    of = "outputs" if report["calibration_rows"] else "weights"
    names = [module.replace(".", "\n") for module in modules]
    table = Table("layer", *names, title=f"relative error of each linear layer's {of}, %", title_style="bold")
    for number in sorted({rounded.layer for rounded in errors}):
        own = {rounded.module: rounded for rounded in errors if rounded.layer == number}
        table.add_row(str(number), *(_shown(own.get(module)) for module in modules))
    if errors:
        console.print(table)
    for name in ("before", "after"):
        found: Evaluation | None = report[f"eval_{name}"]
        if found is not None:
            console.print(f"{name:<7} loss {found['loss']:.4f}" + _more(found), highlight=False)
    ratio = report["bytes_before"] / report["bytes"]
    size = f"{show_bytes(report['bytes'])}, {ratio:.2f} times smaller than {show_bytes(report['bytes_before'])}"
    console.print(f"{report['scheme']} by {report['method']}: {size}: {folder}", highlight=False, soft_wrap=True)


def _more(found: Evaluation) -> str:
    shown = {name: found.get(name) for name in ("perplexity", "exact_match", "accuracy", "f1")}
    return "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in shown.items() if value is not None)


def _shown(rounded: Rounded | None) -> str:
    if rounded is None:
        return ""
    return "kept" if rounded.kept else f"{100 * rounded.error:.2f}"
