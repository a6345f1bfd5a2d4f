"""What sentence-transformers keeps beside a model: how the tokens' vectors become one of the text, in `modules.json`.

Format: sbert.net, "Creating Custom Models"; names of settings as of versions 2 to 6.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxlean.errors import ModelError
from jaxlean.hub.files import read_json

_MODULES = "modules.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_OLD_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class Sentence(NamedTuple):
    """How a text's vector is made."""

    pooling: Literal["cls", "mean"] = "mean"
    normalize: bool = False
    max_length: int | None = None  # tokens of a text; what is longer is cut


def read_sentence(folder: Path) -> Sentence:
    """What the files of a folder say; the mean of all tokens where they say nothing, as sentence-transformers has it.

    Raises:
        ModelError: a module, a pooling or a prompt that is not supported.
    """
    file = folder / _MODULES
    if not file.exists():
        return Sentence()
    try:
        modules = [
            (str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in json.loads(file.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError("not a list of modules", where=file, got=error) from None
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            "modules of sentence-transformers that are not supported", where=file, got=", ".join(kinds),
            wanted="Transformer, Pooling and perhaps Normalize",
        )  # fmt: skip
    _check_prompt(folder / _PROMPTS)
    length = read_json(folder / _LENGTH).get("max_seq_length") if (folder / _LENGTH).exists() else None
    return Sentence(_pooling(folder / modules[1][1] / "config.json"), len(kinds) == 3, length)


def write_sentence(folder: Path, said: Sentence, *, hidden_size: int, source: Path | None) -> None:
    """Write what `read_sentence` reads, as every version of sentence-transformers does.

    Args:
        folder: of the model.
        said: how a text's vector is made.
        hidden_size: of the vectors.
        source: the folder that the model came from, whose prompts are kept.
    """
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if said.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    for _, path in kinds[1:]:
        (folder / path).mkdir()
    pooling = {key: mode == said.pooling for mode, key in _OLD_MODES.items()}
    _write(folder / _MODULES, modules)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size} | pooling)
    if said.max_length is not None:
        _write(folder / _LENGTH, {"max_seq_length": said.max_length, "do_lower_case": False})
    if source is not None and (source / _PROMPTS).exists():
        shutil.copy(source / _PROMPTS, folder)


def _pooling(file: Path) -> Literal["cls", "mean"]:
    said = read_json(file)
    found = said.get("pooling_mode") or [mode for mode, key in _OLD_MODES.items() if said.get(key)]
    modes = [found] if isinstance(found, str) else list(found)
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "cls"
    raise ModelError("a pooling that is not supported", where=file, got=" and ".join(modes), wanted="mean or cls")


def _check_prompt(file: Path) -> None:
    name = read_json(file).get("default_prompt_name") if file.exists() else None
    if name is not None:
        raise ModelError(
            "a prompt before every text is not supported", where=file, got=f"default_prompt_name: {name}",
            fix="set it to null, and put the prompt into the texts",
        )  # fmt: skip


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
