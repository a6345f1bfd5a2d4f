"""Downstream tasks: lm-evaluation-harness asks, the model that jaxlean loads answers (`jaxlean evaluate --tasks`).

The harness (github.com/EleutherAI/lm-evaluation-harness) knows the tasks, their prompts and metrics; of a model it
wants three things: how likely a continuation is after a context, how likely a whole text is, and what the model writes
until a word comes. They are given here as its own model of transformers gives them: tokens of context and continuation
cut at the same place, the left end of what is too long left out.

Requests are sorted by length and laid into batches of few shapes (lengths double from `_SHORTEST` on), so that a task
of a thousand rows compiles a handful of programs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlean.config import RunConfig
from jaxlean.errors import ConfigError
from jaxlean.hub.load import Model
from jaxlean.models.layout import layout_on
from jaxlean.run.evaluate import loaded
from jaxlean.run.generate import Sampling, chat_template, generate
from jaxlean.run.inputs import tokenizer_of
from jaxlean.run.rows import OwnRows
from jaxlean.train.example_scores import continuation_scores
from jaxlean.train.loss import chunk_budget
from jaxlean.xla.compile import use_cache
from jaxlean.xla.mesh import make_mesh, num_batch_shards, split_host
from jaxlean.xla.spread import fetch

_SHORTEST = 32
_NEW_TOKENS = 256  # of a task that says no number, as the harness's own models take it
# (context, continuation), both as tokens; the context is not empty.
Pair = tuple[Sequence[int], Sequence[int]]


class Continuations:
    """How likely continuations are.

    Args:
        model: a decoder, its parameters on the mesh.
        mesh: the rows of a batch are split over it.
        rows: of a batch, on each device.
        logits_bytes: as `train.loss_chunk_bytes`.
    """

    def __init__(self, model: Model, mesh: jax.sharding.Mesh, *, rows: int, logits_bytes: Any = "auto"):
        self._model, self._num = model, rows * num_batch_shards(mesh)
        self._rows = OwnRows(mesh, self._num)
        budget = chunk_budget(logits_bytes, mesh.size, model.config.vocab_size)
        self._step = jax.jit(
            continuation_scores(model.graph, model.config, logits_bytes=budget, layout=layout_on(mesh))
        )
        # as the harness counts it: a tokenizer's own limit is one of its files' defaults
        self.max_length = int(model.config.max_position_embeddings)

    def __call__(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(sum of the continuation's log-probabilities in nats, whether greedy decoding gives it) of each pair.

        What is longer than the model takes loses its left end. An empty continuation is certain.
        """
        rows = [[*context, *continuation][-self.max_length - 1 :] for context, continuation in pairs]
        order = sorted(range(len(pairs)), key=lambda i: -len(rows[i]))
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        for start in range(0, len(order), self._num):
            chosen = order[start : start + self._num]
            length = bucket(len(rows[chosen[0]]))
            batch = laid_out([rows[i] for i in chosen], [len(pairs[i][1]) for i in chosen], self._num, length)
            likely, greedy = map(fetch, self._step(self._model.params, self._rows.on_devices(batch)))
            for place, i in enumerate(chosen):
                found[i] = float(likely[place]), bool(greedy[place])
        return found


def bucket(length: int) -> int:
    """The length that a row is padded to.

    >>> [bucket(n) for n in (1, 32, 33, 100, 2049)]
    [32, 32, 64, 128, 4096]
    """
    found = _SHORTEST
    while found < length:
        found *= 2
    return found


def laid_out(rows: Sequence[Sequence[int]], learned: Sequence[int], num: int, length: int) -> dict[str, np.ndarray]:
    """A batch [num, length] as an evaluation takes it: of each row the last `learned` tokens carry loss."""
    tokens = np.zeros((num, length), np.int32)
    segments, mask = np.zeros_like(tokens), np.zeros((num, length), bool)
    for place, (row, count) in enumerate(zip(rows, learned, strict=True)):
        tokens[place, : len(row)] = row
        segments[place, : len(row)] = 1
        mask[place, len(row) - min(count, len(row)) : len(row)] = True
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy()
    return {"tokens": tokens, "segments": segments, "positions": positions, "loss_mask": mask}


def cut(text: str, until: Sequence[str]) -> str:
    """What was written before the first of the words that end it.

    >>> cut("four. Q: five", ["Q:", "\\n"])
    'four. '
    """
    return text[: min((at for word in until if word and (at := text.find(word)) >= 0), default=len(text))]


def harness_model(model: Model, tokenizer: Any, mesh: jax.sharding.Mesh, config: RunConfig) -> Any:
    """The model as the harness's `LM`.

    Raises:
        ConfigError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise ConfigError(
            "--tasks needs lm-evaluation-harness", got=error, fix="pip install 'jaxlean[harness]'"
        ) from error
    rows = config.eval.per_device_eval_batch_size
    continuations = Continuations(model, mesh, rows=rows, logits_bytes=config.train.loss_chunk_bytes)

    class Answers(TemplateLM):
        """See the module."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            """What a text without context begins with."""
            first = tokenizer.bos_token_id
            return int(first if first is not None else tokenizer.eos_token_id)

        @property
        def max_length(self) -> int:
            return continuations.max_length

        @property
        def tokenizer_name(self) -> str:
            return str(tokenizer.name_or_path)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """With what the tokenizer puts before every text, unless it stands there already."""
            first = tokenizer.bos_token
            if add_special_tokens is None:
                add_special_tokens = not (first and string.startswith(first))
            return list(tokenizer.encode(string, add_special_tokens=add_special_tokens))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return continuations([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            pairs: list[Pair] = []
            of: list[int] = []
            for number, request in enumerate(requests):
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length, context_len=1,
                )  # fmt: skip
                for window in map(make_disjoint_window, windows):
                    pairs.append(window)
                    of.append(number)
            sums = [0.0] * len(requests)
            for number, (likely, _) in zip(of, continuations(pairs), strict=True):
                sums[number] += likely
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            texts: list[str] = [""] * len(requests)
            alike: dict[tuple[Any, ...], list[int]] = {}
            for number, request in enumerate(requests):
                alike.setdefault((*_how(request.args[1]), *_until(request.args[1])), []).append(number)
            for (most, sampling, *until), numbers in alike.items():
                room = max(self.max_length - most, 1)
                prompts = [self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in numbers]
                new = generate(
                    model, prompts, max_new_tokens=most, stop=[self.eot_token_id, *beginning(until)], batch_size=rows,
                    sampling=replace(sampling, seed=config.seed), kv_cache_dtype=config.model.kv_cache_dtype,
                )  # fmt: skip
                for i, text in zip(numbers, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                    texts[i] = cut(text, until)
            return texts

    pieces: list[str] = []

    def beginning(until: Sequence[str]) -> list[int]:
        """The tokens that begin with a word that ends a text: what would follow is cut off anyway."""
        if not pieces:
            pieces.extend(tokenizer.batch_decode([[token] for token in range(len(tokenizer))]))
        return [token for token, piece in enumerate(pieces) if any(word and piece.startswith(word) for word in until)]

    return Answers()


def _until(how: dict[str, Any]) -> list[str]:
    until = how.get("until") or []
    return [until] if isinstance(until, str) else list(until)


def _how(how: dict[str, Any]) -> tuple[int, Sampling]:
    """(most new tokens, how they are chosen) of a request to write.

    Raises:
        ConfigError: it asks for a way to write that is not here.
    """
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    if more := sorted(how.keys() - {*names, "until", "do_sample", "temperature", "top_k", "top_p"}):
        raise ConfigError("a task asks for a way to generate that is not here", got=", ".join(more))
    most = next((int(how[name]) for name in names if how.get(name) is not None), _NEW_TOKENS)
    temperature = float(how.get("temperature") or 0.0)
    if how.get("do_sample") is False or not temperature:
        return most, Sampling()
    return most, Sampling(temperature, how.get("top_k"), how.get("top_p"))


def evaluate_tasks(
    config: RunConfig,
    tasks: Sequence[str],
    *,
    adapter: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    include: Path | None = None,
) -> dict[str, Any]:
    """`jaxlean evaluate --tasks`: measure a model, perhaps with an adapter, on tasks of the harness; prints its table.

    Args:
        config: `model`, `eval.per_device_eval_batch_size`, `mesh` and `seed` count.
        tasks: their names.
        adapter: PEFT adapter folder.
        limit: rows of each task; default: all.
        shots: examples before each row; default: as the task says.
        include: a folder with tasks of one's own (YAML).

    Returns:
        `{task: {metric: value}}`.

    Raises:
        ConfigError: lm_eval is not installed, a task that it does not know, or a model that writes no text.
    """
    if config.task != "generate":
        raise ConfigError("--tasks is for task: generate", got=f"task: {config.task}")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise ConfigError(
            "--tasks needs lm-evaluation-harness", got=error, fix="pip install 'jaxlean[harness]'"
        ) from error
    template = chat_template(config.model)
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in tasks:
        if not manager.match_tasks([name]):
            raise ConfigError("lm-evaluation-harness knows no such task", got=name, fix="lm-eval ls tasks lists them")
    split_host(config.mesh.host_devices)
    use_cache(config.compilation_cache)
    mesh = make_mesh(config.mesh.model_copy(update={"auto": False}))
    model = loaded(config, mesh, adapter)
    found = simple_evaluate(
        model=harness_model(model, tokenizer_of(model, template), mesh, config), tasks=list(tasks), limit=limit,
        num_fewshot=shots, task_manager=manager, random_seed=config.seed, bootstrap_iters=1000,
    )  # fmt: skip
    assert found is not None, "only other processes of the harness get nothing"
    print(make_table(found))
    return dict(found["results"])
