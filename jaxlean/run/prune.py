"""`jaxlean prune`: a model with zeros, or a smaller dense one, as an ordinary Hugging Face folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import codec, tree
from jaxlean.compress import prune as masks
from jaxlean.compress import structured
from jaxlean.compress.sizes import sizes
from jaxlean.compress.walk import Batch, check_plain
from jaxlean.config import RunConfig
from jaxlean.config.read import told
from jaxlean.errors import ConfigError
from jaxlean.hub.load import Model, load
from jaxlean.hub.shape import reshaped
from jaxlean.hub.write import write_model
from jaxlean.run.calibration import calibration_batches
from jaxlean.run.evaluate import evaluator_of, loaded
from jaxlean.run.generate import chat_template
from jaxlean.run.inputs import tokenizer_of
from jaxlean.run.job import resolved
from jaxlean.run.merge import check_base, merged, with_labels_of
from jaxlean.run.quantize import compare, stored_dtype
from jaxlean.run.sensitivity import check_file, draw, measure
from jaxlean.run.staging import check_output, staged
from jaxlean.run.summary import Evaluation
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh

PRUNING = "pruning.json"
# What a method of this much freedom is fitted to must be known in as many directions.
_FITTED = ("sparsegpt",)


@dataclass
class Result:
    """What became of a model.

    Attributes:
        model: that results.
        rows: of the table: layer, module, share of zeros where there are any, relative error.
        influence: of each layer, where layers went.
        kept: their numbers, where layers went.
    """

    model: Model
    rows: list[dict[str, Any]] = field(default_factory=list)
    influence: list[float] | None = None
    kept: list[int] | None = None


def prune(
    config: RunConfig, *, output: Path | None, adapter: Path | None = None, sensitivity: Path | None = None
) -> dict[str, Any]:
    """Prune a model, say what it lost, and write it.

    Args:
        config: `task`, `model`, `prune`, `data` (calibrated on `train`, measured on `eval`), `eval` and `seed` count.
        output: folder that is written; None: only the sensitivity.
        adapter: PEFT adapter folder, merged before.
        sensitivity: file for a picture of what each layer would suffer alone.

    Returns:
        what `pruning.json` holds; nothing without an output.

    Raises:
        UserError: before anything is written.
    """
    wanted = config.prune
    if output is None and sensitivity is None:
        raise ConfigError("nothing to write", fix="--output FOLDER, or --sensitivity FILE.png")
    if output is not None:
        check_output(output)
    if sensitivity is not None:
        check_file(sensitivity)
    if config.model.quantization != "none":
        raise ConfigError(
            "a quantized model is not pruned", where="model.quantization", got=config.model.quantization,
            fix="model.quantization=none; prune first, then quantize",
        )  # fmt: skip
    if not config.data.train:
        raise ConfigError("data.train is not set: nothing to calibrate on", fix="data.train=FILE")
    template = chat_template(config.model)
    use_cache(config.compilation_cache)
    mesh = make_mesh(devices=jax.devices()[:1])  # the walk runs on one device
    config = resolved(with_labels_of(adapter, config), trains=False)
    model = loaded(config, mesh, adapter)
    if adapter is not None:
        check_base(adapter, config)
        model = merged(model)
    check_plain(model)
    choice = masks.Choice(
        wanted.method if wanted.leaves_zeros else "magnitude", wanted.sparsity, wanted.of,  # type: ignore[arg-type]
        [*((rule, 0.0) for rule in wanted.ignore), *wanted.rules.items()], wanted.damping,
    )  # fmt: skip
    asked = _asked(model, config) if not wanted.leaves_zeros else {}
    if wanted.leaves_zeros:
        masks.shares_of(model, choice)
    tokenizer = tokenizer_of(model)
    if template is not None:
        tokenizer.chat_template = template
    batches = calibration_batches(config, tokenizer, vocab_size=model.config.vocab_size)
    tokens = sum(int((batch["segments"] > 0).sum()) for batch in batches)
    _check_tokens(config, model, asked, tokens, drawn=sensitivity is not None)
    print(f"calibration: {config.calibration.num_rows:,} sequences, {tokens:,} tokens")
    if sensitivity is not None:
        draw(measure(model, batches, choice, wanted), sensitivity, method=wanted.method)
        print(f"sensitivity: {sensitivity}")
    if output is None:
        return {}

    evaluate = _evaluation(config, tokenizer, mesh)
    before = evaluate(model)
    if wanted.leaves_zeros:
        pruned, table = masks.prune(model, batches, choice)
        result = Result(pruned, [row._asdict() for row in table])
    else:
        result = _smaller(model, batches, config, asked)
    if "tokenizer" in vars(model):  # read already, and perhaps given another chat template
        result.model.tokenizer = model.tokenizer
    after = evaluate(result.model)
    said = {
        "method": wanted.method,
        "base": config.model.path,
        "adapter": None if adapter is None else str(adapter),
        "settings": told(wanted),
        "calibration_rows": config.calibration.num_rows,
        "calibration_tokens": tokens,
        "num_layers_before": model.config.num_layers,
        "num_params_before": _count(model),
        "num_params": _count(result.model),
        "zeros": _zeros(result.model),
        "eval_before": before,
        "eval_after": after,
        "influence": result.influence,
        "kept_layers": result.kept,
        "layers": result.rows,
    }
    show(said)
    _write(result.model, output, said, stored_dtype(model, config))
    print(f"pruned model: {output}")
    return said


def _asked(model: Model, config: RunConfig) -> dict[str, Any]:
    """Arguments of `structured.width`, and `keep` or `num_layers`, checked against the model."""
    wanted = config.prune
    asked: dict[str, Any] = {
        "hidden_size": wanted.hidden_size,
        "intermediate_size": wanted.intermediate_size,
        "num_heads": wanted.num_attention_heads,
        "num_kv_heads": wanted.num_key_value_heads,
        "num_layers": wanted.num_hidden_layers,
        "keep": wanted.keep_layers,
    }
    asked = {name: size for name, size in asked.items() if size is not None}
    if wanted.params is not None:
        asked = dict(sizes(model, wanted.params, wanted.method, multiple=wanted.multiple))  # type: ignore[arg-type]
    if not asked:
        raise ConfigError(
            f"prune.method: {wanted.method} is not told how much goes", where="prune",
            fix="prune.params=0.75 (a share of the parameters), or a size: prune.intermediate_size=..., "
            "prune.num_key_value_heads=..., prune.num_hidden_layers=...",
        )  # fmt: skip
    if wanted.keep_layers is not None:
        structured.check_layers(wanted.keep_layers, model.config)
    num = asked.get("num_layers")
    if num is not None and num > model.config.num_layers:
        raise ConfigError("prune.num_hidden_layers: there are fewer", got=num, wanted=f"1 to {model.config.num_layers}")
    widths = {name: size for name, size in asked.items() if name not in ("num_layers", "keep")}
    if widths:
        reshaped(model, structured.narrowed(model, **widths))
    return asked


def _smaller(model: Model, batches: Sequence[Batch], config: RunConfig, asked: dict[str, Any]) -> Result:
    """Layers first, so that what is left of them is narrowed for what it then has to do."""
    wanted, result = config.prune, Result(model)
    widths = {name: size for name, size in asked.items() if name not in ("num_layers", "keep")}
    keep = asked.get("keep")
    if "num_layers" in asked:
        result.influence = structured.influences(model, batches)
        keep = structured.most_influential(result.influence, asked["num_layers"])
    if keep is not None:
        result.kept, result.model = keep, structured.depth(model, keep)
    if widths:
        result.model, table = structured.width(
            result.model, batches, **widths, compensate=wanted.compensate, damping=wanted.damping
        )
        result.rows = [row._asdict() for row in table]
    return result


def _check_tokens(config: RunConfig, model: Model, asked: dict[str, Any], tokens: int, *, drawn: bool) -> None:
    """What is fitted to the inputs of a matrix needs as many of them as it has directions. Raises: ConfigError.

    Args:
        asked: the sizes, as of `_asked`.
        drawn: the sensitivity of all matrices is wanted too.
    """
    wanted = config.prune
    neurons, heads = model.config.intermediate_size, model.config.num_heads * model.config.head_dim
    if drawn or wanted.method in _FITTED:
        sizes = [neurons, heads]
    else:
        sizes = [neurons] * ("intermediate_size" in asked) + [heads] * bool(
            {"num_heads", "num_kv_heads"} & asked.keys()
        )
    fits = wanted.method in _FITTED or (not wanted.leaves_zeros and wanted.compensate)
    widest, own = max(sizes, default=0), ", or prune.compensate=false"
    if fits and tokens < widest:
        raise ConfigError(
            "too few calibration tokens: what stays would be fitted to noise", where="calibration.num_rows",
            got=f"{tokens:,} tokens", wanted=f"{widest:,} or more, the inputs of the widest matrix",
            fix="a larger calibration.num_rows or calibration.max_length" + ("" if wanted.method in _FITTED else own),
        )  # fmt: skip


def _evaluation(config: RunConfig, tokenizer: Any, mesh: jax.sharding.Mesh) -> Callable[[Model], Evaluation | None]:
    if not config.data.eval and not config.data.eval_fraction:
        return lambda model: None
    return lambda model: evaluator_of(config, model, tokenizer, mesh).loss({}, model.params)


def _count(model: Model) -> int:
    return sum(codec.num_params(path, leaf) for path, leaf in tree.flatten(model.params).items())


def _zeros(model: Model) -> float:
    """Share of zeros in the kernels of the layers."""
    kernels = [x for path, x in tree.flatten(model.params["layers"]).items() if path.endswith(".kernel")]
    return float(sum(int((x == 0).sum()) for x in kernels) / sum(x.size for x in kernels))


def show(said: dict[str, Any]) -> None:
    """Print the table: a line for each layer, then what changed of the whole."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=160)
    modules = sorted({row["module"] for row in said["layers"]}, key=lambda name: (name.split(".")[0], name))
    numbers = sorted({row["layer"] for row in said["layers"]})
    if numbers:
        table = Table(title="relative error of what each matrix gives for its inputs, %")
        for name in ("layer", *modules):
            table.add_column(name, justify="right")
        for number in numbers:
            own = {row["module"]: row["error"] for row in said["layers"] if row["layer"] == number}
            table.add_row(str(number), *(f"{100 * own[name]:.2f}" if name in own else "" for name in modules))
        console.print(table)
    if said["kept_layers"] is not None:
        table = Table(title="layers")
        for name in ("layer", "influence", "stays"):
            table.add_column(name, justify="right")
        influence = said["influence"] or [None] * said["num_layers_before"]
        for number, found in enumerate(influence):
            stays = "yes" if number in said["kept_layers"] else ""
            table.add_row(str(number), "" if found is None else f"{found:.4f}", stays)
        console.print(table)
    was, left = said["num_params_before"], said["num_params"]
    console.print(
        f"parameters: {was:,} -> {left:,} ({left / was:.1%}); zeros in the layers' matrices: {said['zeros']:.1%}"
    )
    for name in ("loss", "perplexity"):
        if said["eval_before"] is not None and name in said["eval_before"]:
            console.print(f"held-out {name}: {said['eval_before'][name]:,.4f} -> {said['eval_after'][name]:,.4f}")


def _write(model: Model, output: Path, said: dict[str, Any], dtype: str) -> None:
    """The model and its `pruning.json` in a folder that appears when it is whole, and can be read."""
    with staged(output) as folder:
        write_model(model, folder, dtype=dtype)
        (folder / PRUNING).write_text(json.dumps(said, indent=2, default=_plain_number) + "\n", encoding="utf-8")
        here = make_mesh(devices=jax.devices()[:1])
        compare(load(folder, np.dtype(model.dtype).name, here, **_head(model)), model, folder)


def _head(model: Model) -> dict[str, Any]:
    head = getattr(model.config, "head", None)
    return {} if head in (None, "none") else {"task": head}


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
