"""Rows of new tokens in PEFT's format: beside LoRA's matrices, or alone.

Beside them `trainable_token_indices` of the config names the embedding (and the head, where that is not tied) and the
tokens, and `...embed_tokens.token_adapter.trainable_tokens_delta` [tokens, hidden] holds the rows themselves, no
difference to anything. Alone the adapter is of the type TRAINABLE_TOKENS, whose tensor lacks the word `token_adapter`.
To load either, PEFT's base must have rows for the ids: `model.resize_token_embeddings(len(tokenizer))`, where the
tokenizer is longer than the model's table. Source: peft/tuners/trainable_tokens and peft/utils/other.py (0.21).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlean.adapt.vocabulary import HEAD, IDS, TABLE, TABLES, is_beside
from jaxlean.errors import ModelError
from jaxlean.hub.names import Names

ALONE = "TRAINABLE_TOKENS"
_DELTA = "trainable_tokens_delta"
_DELTAS = re.compile(rf"(.+?)\.(?:token_adapter\.)?{_DELTA}$")
# What PEFT saves beside rows where the vocabulary has grown (`save_embedding_layers`): the whole tables.
_WHOLE = re.compile(r"(.+?)\.(?:token_adapter\.)?(?:base_layer\.)?weight$")
_EMBED, _HEAD = TABLES


class Rows(NamedTuple):
    """New tokens, as PEFT has them.

    Args:
        tensors: by name, without the prefix of all adapters.
        indices: module -> the ids of its tokens.
    """

    tensors: dict[str, np.ndarray]
    indices: dict[str, list[int]]


def write(leaves: Mapping[str, np.ndarray], names: Names, *, alone: bool) -> Rows:
    """The rows among an adapter's leaves.

    Args:
        leaves: path -> array; of these, those of new tokens are written.
        names: of the base, as adapters have them.
        alone: whether there is nothing else, and so no LoRA.
    """
    rows = Rows({}, {})
    inside = "" if alone else "token_adapter."
    for path in sorted(TABLES.keys() & leaves.keys()):
        module = names.module(TABLES[path][0].rpartition(".")[0])
        rows.tensors[f"{module}.{inside}{_DELTA}"] = np.ascontiguousarray(leaves[path], np.float32)
        rows.indices[module] = leaves[IDS].tolist()
    if alone and _HEAD not in leaves and not names.family.heads:
        # of rows alone PEFT wants those of a head that is tied as well
        head = names.modules(["head"]).get("head", "lm_head")
        rows.tensors[f"{head}.{_DELTA}"] = np.array(leaves[_EMBED], np.float32)
    return rows


def alone(rows: Rows, *, base: str, task_type: str | None) -> dict[str, Any]:
    """The `adapter_config.json` of rows without LoRA."""
    return {
        "peft_type": ALONE,
        "task_type": task_type,
        "base_model_name_or_path": base,
        "token_indices": next(iter(rows.indices.values())),
        "target_modules": sorted(rows.indices),
        "init_weights": True,
        "inference_mode": True,
    }


def is_alone(leaves: Mapping[str, Any]) -> bool:
    """Whether an adapter's leaves are rows of new tokens, and nothing else."""
    return bool(leaves) and all(map(is_beside, leaves))


def room(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], names: Names) -> int:
    """How many tokens the base must have room for; 0 for an adapter without rows.

    Args:
        settings: `adapter_config.json`.
        shapes: of the adapter's tensors, by name, without the prefix of all adapters.
        names: of the base.
    """
    ids = [i for own in _indices(settings).values() for i in own]
    if not ids:
        return 0
    modules = _modules(names)
    whole = [shape[0] for name, shape in shapes.items() if (match := _WHOLE.match(name)) and match[1] in modules]
    return max(max(ids) + 1, *whole, 0)


def take(
    tensors: dict[str, np.ndarray], settings: Mapping[str, Any], names: Names, base: Mapping[str, Any], where: object
) -> dict[str, np.ndarray]:
    """The leaves of rows, and whole tables, among an adapter's tensors, which are taken out of them.

    Args:
        tensors: by name, without the prefix of all adapters.
        settings: `adapter_config.json`.
        names: of the base.
        base: its parameters (or their shapes) by path.
        where: the file, for messages.

    Raises:
        ModelError: rows that do not fit the config's ids or the base, or that differ between embedding and head.
    """
    indices, modules = _indices(settings), _modules(names)
    if not indices:
        return {}
    rows: dict[str, np.ndarray] = {}
    tables: dict[str, np.ndarray] = {}
    seen: list[np.ndarray] = []
    for name in list(tensors):
        delta, whole = _DELTAS.match(name), _WHOLE.match(name)
        match = delta or whole
        leaf = modules.get(match[1]) if match is not None else None
        if leaf is None:
            continue
        tensor = tensors.pop(name).astype(np.float32)
        table, dim = TABLES[leaf]
        if table not in base:  # a copy: the head is the embedding
            continue
        hidden = base[TABLE].shape[1]
        if delta is None:
            tables[table] = tensor if dim == 0 else tensor.T
            continue
        ids = np.asarray(_of(indices, delta[1]), np.int32)
        if tensor.shape != (len(ids), hidden):
            raise ModelError(
                f"rows of tokens that do not fit: {name}", where=where, got=tensor.shape, wanted=(len(ids), hidden)
            )
        order = np.argsort(ids)
        seen.append(ids[order])
        rows[leaf] = tensor[order]
    if _EMBED not in rows:
        raise ModelError("the adapter names trainable tokens and holds no rows of the embedding", where=where)
    if any(not np.array_equal(ids, seen[0]) for ids in seen):
        raise ModelError("the embedding and the head train different tokens, which is not supported", where=where)
    if HEAD in base and _HEAD not in rows:  # it does not train: its rows stay what they are
        kernel = tables[HEAD] if HEAD in tables else np.asarray(base[HEAD], np.float32)
        rows[_HEAD] = kernel[:, seen[0]].T
    return rows | tables | {IDS: seen[0]}


def _modules(names: Names) -> dict[str, str]:
    """PEFT's names of the modules that have rows of tokens -> our leaf of such rows."""
    here = names.modules([table.rpartition(".")[0] for table, _ in TABLES.values()])
    return {here[m]: leaf for leaf, (table, _) in TABLES.items() if (m := table.rpartition(".")[0]) in here}


def _indices(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """Module -> ids; a list alone is the embedding's, under the name of nothing."""
    if settings.get("peft_type") == ALONE:
        targets = settings.get("target_modules") or [""]
        return dict.fromkeys([targets] if isinstance(targets, str) else targets, settings.get("token_indices") or [])
    given = settings.get("trainable_token_indices") or {}
    return {"": given} if isinstance(given, list) else dict(given)


def _of(indices: Mapping[str, list[int]], module: str) -> list[int]:
    """The ids of a module, which is named whole or by its last words."""
    named = next((ids for name, ids in indices.items() if name and f".{module}".endswith(f".{name}")), None)
    return named if named is not None else next(iter(indices.values()))
