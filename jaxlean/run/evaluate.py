"""Quality on held-out rows: loss and perplexity over their tokens, exact match by generating their completions."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean import tree
from jaxlean.config import RunConfig
from jaxlean.data.batches import EvalBatches, Stats
from jaxlean.data.loader import eval_batches, eval_examples
from jaxlean.data.shots import ShotRows
from jaxlean.data.tokenize import Ragged
from jaxlean.errors import ConfigError, DataError, RunError
from jaxlean.hub.adapter import trained_over
from jaxlean.hub.load import Model, load
from jaxlean.run.generate import chat_template, generate, stop_ids
from jaxlean.run.inputs import tokenizer_of
from jaxlean.run.job import head_of, resolved
from jaxlean.run.losses import loss_of
from jaxlean.run.merge import load_adapted, with_labels_of
from jaxlean.run.quality import TaskEvaluator
from jaxlean.run.rows import OwnRows
from jaxlean.run.summary import Evaluation
from jaxlean.train.objective import Loss
from jaxlean.train.step import make_eval_step
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import check_axes, make_mesh, num_batch_shards, split_host

_BLOCK = 1024  # examples decoded at a time


class Evaluator:
    """Measures a model on the config's held-out rows, as often as asked, compiling once.

    Args:
        config: `data.eval` (or `data.eval_fraction`) and the `eval` section.
        tokenizer: the model's.
        loss: the model's summed cross entropy, as `train.step` takes it.
        mesh: the rows of a batch are split over it.
        shots: the same rows with examples before them (few-shot), to be measured in their place.

    Raises:
        DataError: no held-out row carries a token to predict.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Any,
        loss: Loss,
        mesh: jax.sharding.Mesh,
        *,
        vocab_size: int,
        shots: ShotRows | None = None,
    ):
        self._config, self._tokenizer, self._shots = config, tokenizer, shots
        rows = config.eval.per_device_eval_batch_size * num_batch_shards(mesh)
        self._rows = OwnRows(mesh, rows)
        self._batches: EvalBatches = (
            eval_batches(config, tokenizer, rows=rows, vocab_size=vocab_size, held=self._rows.held)
            if shots is None
            else shots.batches(rows=rows, seed=config.seed, held=self._rows.held)
        )
        if not len(self._batches):
            raise DataError("the held-out data is empty", where="data.eval")
        self._step = make_eval_step(loss)
        self._prompts = None if shots is None else shots.prompts  # else encoded on first use
        self._bytes: int | None = None  # counted on first use

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self._batches.length

    @property
    def examples(self) -> Ragged | None:
        """The held-out rows as tokens; None where they are none."""
        return self._batches.examples

    @property
    def stats(self) -> Stats:
        """What the held-out rows became."""
        return self._batches.stats

    def loss(self, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        """Mean cross entropy over every held-out token that carries loss, and over the bytes that these stand for."""
        sums = [self._step(trainable, frozen, self._rows.on_devices(batch)) for batch in self._batches]
        # one transfer for all batches; summed in float64
        losses, tokens = zip(*jax.device_get(sums), strict=True)
        total = int(np.sum(tokens, dtype=np.int64))
        loss = float(np.sum(losses, dtype=np.float64)) / max(total, 1)
        examples = self.stats.examples  # each once
        found: Evaluation = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self._bytes is None:
            self._bytes = num_bytes(self._batches.examples, self._tokenizer)
        if self._bytes:
            found["bits_per_byte"] = loss * total / self._bytes / math.log(2.0)
        return found | {"examples": examples, "tokens": total}

    def __call__(self, model: Model, trainable: tree.Tree, frozen: tree.Tree) -> Evaluation:
        """Loss, and exact match where the config asks for it.

        Args:
            model: its graph matches `merge(trainable, frozen)`.
        """
        found = self.loss(trainable, frozen)
        if self._config.eval.exact_match:
            whole = model.with_params(tree.merge(trainable, frozen))
            right = [got == want for got, want in self.answers(whole)]
            found["exact_match"] = sum(right) / len(right)
            found["examples"] = len(right)
        return found

    def answers(self, model: Model) -> list[tuple[str, str]]:
        """(generated, wanted) completion of each held-out row, without the blanks around them."""
        if self._prompts is None:
            self._prompts = eval_examples(self._config, self._tokenizer)
        if not self._prompts:
            raise DataError("no held-out row has a prompt and a completion to compare", where="data.eval")
        new = generate(
            model,
            [prompt for prompt, _, _ in self._prompts],
            max_new_tokens=self._config.eval.max_new_tokens,
            stop=stop_ids(model, self._tokenizer),
            batch_size=max(self._config.eval.per_device_eval_batch_size, 1),
            kv_cache_dtype=self._config.model.kv_cache_dtype,
        )
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        if self._shots is not None:
            texts = [self._shots.cut(text) for text in texts]
        return [(text.strip(), want.strip()) for text, (_, want, _) in zip(texts, self._prompts, strict=True)]


def num_bytes(examples: Ragged | None, tokenizer: Any) -> int:
    """Bytes of UTF-8 that the learned tokens of examples stand for: the same however a text is cut.

    Those that mark an end, or a turn, stand for none. 0 where there is no tokenizer to say it.
    """
    if examples is None or tokenizer is None:
        return 0
    total = 0
    for start in range(0, len(examples), _BLOCK):
        rows = (examples[i] for i in range(start, min(start + _BLOCK, len(examples))))
        texts = tokenizer.batch_decode(
            [ids[mask].tolist() for ids, mask in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        total += sum(len(text.encode("utf-8", "replace")) for text in texts)
    return total


def evaluator_of(config: RunConfig, model: Model, tokenizer: Any, mesh: jax.sharding.Mesh) -> Evaluator | TaskEvaluator:
    """What measures a model at its task. Args as of `TaskEvaluator`."""
    if config.task != "generate":
        return TaskEvaluator(config, model, tokenizer, mesh)
    return Evaluator(config, tokenizer, loss_of(config, model, mesh), mesh, vocab_size=model.config.vocab_size)


def loaded(config: RunConfig, mesh: jax.sharding.Mesh, adapter: Path | None) -> Model:
    """The model that a resolved config names, with its task's head, and perhaps an adapter.

    Raises:
        ConfigError: no model is named.
    """
    named = config.model
    if named.path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    form: dict[str, Any] = {"quantization": named.quantization, "matmul": named.matmul}
    if adapter is not None:
        form |= trained_over(adapter)
    model = load(
        named.path, named.dtype, mesh, revision=named.revision, tokenizer=named.tokenizer, attention=named.attention,
        **form, **head_of(config),
    )  # fmt: skip
    return model if adapter is None else load_adapted(model, adapter)


def evaluate(config: RunConfig, *, adapter: Path | None = None, answers: Path | None = None) -> Evaluation:
    """`jaxlean evaluate`: measure a model, perhaps with an adapter, and print what was found.

    Args:
        config: `task`, `model`, `data`, `eval`, `mesh`, `train.loss_chunk_bytes` and `train.contrast` count; the
            rest is not read.
        adapter: PEFT adapter folder.
        answers: a JSONL file to write `generated` and `wanted` of each held-out row to.

    Raises:
        ConfigError: no model or no held-out data is named.
        RunError: the answers cannot be written.
    """
    config, model, tokenizer, mesh = prepared(config, adapter, answers)
    evaluator = evaluator_of(config, model, tokenizer, mesh)
    shapes = {path: tuple(leaf.shape) for path, leaf in tree.flatten(model.params).items()}
    for line in check_axes(mesh, shapes, num_kv_heads=model.config.num_kv_heads, length=evaluator.length):
        print(line)
    print(f"held-out data: {evaluator.stats}")
    found = evaluator.loss({}, model.params)
    if isinstance(evaluator, Evaluator) and (config.eval.exact_match or answers is not None):
        found["exact_match"] = compare(evaluator.answers(model), answers)
    print_evaluation(found)
    return found


def prepared(
    config: RunConfig, adapter: Path | None, answers: Path | None
) -> tuple[RunConfig, Model, Any, jax.sharding.Mesh]:
    """(the config resolved, the model, its tokenizer, the mesh) of an evaluation. Args, errors: as of `evaluate`."""
    if config.model.path is None:
        raise ConfigError("model.path is not set", fix="model.path=<folder or Hugging Face id>")
    if not config.data.eval and not config.data.eval_fraction:
        raise ConfigError("no held-out data", where="data.eval", fix="data.eval=FILE, or data.eval_fraction=0.1")
    template = chat_template(config.model)
    if answers is not None and (answers.is_dir() or not answers.parent.is_dir()):
        what = "is a folder" if answers.is_dir() else "lies in a folder that is not there"
        raise RunError(f"the file for the answers {what}", where=answers, fix="--answers names a file to write")
    split_host(config.mesh.host_devices)
    use_cache(config.compilation_cache)
    # to measure once is not worth a search for a mesh: all copies, unless an axis is set
    mesh = make_mesh(config.mesh.model_copy(update={"auto": False}))
    if answers is not None and config.task != "generate":
        raise ConfigError("--answers is for task: generate", fix="jaxlean predict writes labels and vectors")
    config = resolved(with_labels_of(adapter, config), trains=False)
    model = loaded(config, mesh, adapter)
    return config, model, tokenizer_of(model, template), mesh


def compare(pairs: Sequence[tuple[str, str]], answers: Path | None) -> float:
    """The share of (generated, wanted) that are the same; `answers` is a JSONL file to write them to.

    Raises:
        RunError: it cannot be written.
    """
    if answers is not None:
        lines = [json.dumps({"generated": got, "wanted": want}, ensure_ascii=False) for got, want in pairs]
        try:
            answers.write_text("\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunError("the answers cannot be written", where=answers, got=error) from error
    return sum(got == want for got, want in pairs) / len(pairs)


def print_evaluation(found: Evaluation) -> None:
    """One line a number."""
    for name, value in found.items():
        print(f"{name:<14} {value:,.4f}" if isinstance(value, float) else f"{name:<14} {value:,}")
