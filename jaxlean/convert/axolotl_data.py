"""Axolotl's `datasets`: the shape of each one's rows (`type`, `field_...`) -> sources (`data.train`).

What is read: axolotl/utils/schemas/datasets.py and prompt_strategies/, Axolotl 0.9 to 0.18.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlean.convert import peek
from jaxlean.convert.row import Line, Outcome, Row, idle, is_off, missing
from jaxlean.convert.source import Source, flat, names

_BUILDERS = ("json", "csv", "parquet", "text", "arrow")
_SPEAKERS = {
    "user": {"user", "human"}, "assistant": {"assistant", "gpt", "chatgpt", "model", "bot"}, "system": {"system"},
    "tool": {"tool", "function", "observation", "function_response"},
}  # fmt: skip
# Types that are this project's own texts around columns of these names, without a chat template.
_QUESTIONS = {
    "alpaca_chat.load_qa": ("question", "answer"), "alpaca_chat.load_camel_ai": ("message_1", "message_2"),
}  # fmt: skip


@dataclass
class Dataset:
    """One entry as it becomes sources.

    Attributes:
        files: paths of sources; several where an entry names several files.
        settings: of each of them.
        lines: what became of each key.
        plain: rows are prompts and completions, of which Axolotl makes plain text.
        train_on_all: all of a conversation is learned.
    """

    files: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    plain: bool = False
    train_on_all: bool = False

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Entries of `data.train`."""
        return [{"path": file} | self.settings for file in self.files]


# Keys of an entry that nothing more is to be said of than this.
ROWS: tuple[Row, ...] = (
    idle("ds_type field_tools preprocess_shards", "the file's name and columns tell"),
    idle("trust_remote_code", "no dataset's script is run"),
    idle("field_thinking template_thinking_key", "a chat template reads the keys of a message that it knows"),
    missing("shards shards_idx", "a part of the rows", "limit: the first rows"),
    missing("revision", "a certain revision on the hub", "its files by their https://huggingface.co/... address"),
    missing("drop_system_message", "leaves system turns out", "rows without them"),
    missing(
        "message_field_training message_field_training_detail", "marks in a message what is learned", "data.train_on"
    ),
    missing("split_thinking", "splits reasoning from answers", "model.chat_template: FILE.jinja"),
    missing("chat_template chat_template_jinja", "a template for this dataset", "model.chat_template: one for all"),
    missing("conversation", "a FastChat template", "model.chat_template: FILE.jinja"),
    missing("input_transform logprobs_field temperature input_format", "changes rows as they are read", "the rows"),
    missing("skip", "leaves the first rows out", "limit: the first rows"),
)
_HANDLED = (
    "path", "data_files", "split", "name", "type", "field", "field_messages", "message_property_mappings",
    "message_field_role", "message_field_content", "roles", "roles_to_train", "train_on_eos", "text_column",
    "field_human", "field_model",
)  # fmt: skip
_TYPE_KEYS = (
    "field_instruction", "field_input", "field_output", "field_system", "system_prompt", "system_format", "format",
    "no_input_format",
)  # fmt: skip


def dataset(entry: Any, label: str, source: Source) -> Dataset:
    """What becomes of one entry.

    Args:
        entry: of the list, a mapping.
        label: its name in the report: `datasets[0]`.
        source: the file.
    """
    if not isinstance(entry, Mapping):
        line = Line(label, entry, Outcome("carried", {}, "a path alone"))
        return Dataset([str(entry)], lines=[line])
    own = flat(source.file, entry)
    made = Dataset(_files(own))
    said = {
        "type": _shape(own, made), "split": _split(own, made, source), "train_on_eos": _ends(own),
        "roles_to_train": _learned(own, made), "roles": _speakers(own),
        "message_property_mappings": _properties(own), "data_files": _data_files(own),
    }  # fmt: skip
    if own.has("name"):
        made.settings["name"] = own.get("name")
    for key, value in own.values.items():
        row = next((row for row in ROWS if row.knows(key)), None)
        if key in said:
            outcome = said[key]
        elif key in _HANDLED or (key in _TYPE_KEYS and own.get("type") is None):
            outcome = Outcome("carried", note="with the source")
        elif row is not None:
            outcome = row.outcome(value, own)
        else:
            outcome = Outcome("unknown", note="not a key of an Axolotl dataset")
        made.lines.append(Line(f"{label}.{key}", value, outcome, secret=outcome.kind == "unknown"))
    return made


def _files(own: Source) -> list[str]:
    path, files = str(own.get("path", default="")), own.get("data_files")
    if files is None:
        return [path]
    listed = [str(file) for file in (files if isinstance(files, list) else [files])]
    if path in _BUILDERS:
        return listed
    # which files of a repository: each has an address of its own
    return [f"https://huggingface.co/datasets/{path}/resolve/{own.get('revision', default='main')}/{f}" for f in listed]


def _data_files(own: Source) -> Outcome:
    if str(own.get("path")) in _BUILDERS:
        return Outcome("carried", note="they are the paths")
    return Outcome("carried", note="each by its address on the hub")


def _split(own: Source, made: Dataset, source: Source) -> Outcome:
    name = str(own.get("split"))
    base, _, part = name.partition("[")
    if not own.has("split") or name == "train":
        return Outcome("idle", note="the default")
    local = [peek.place(file, source) for file in made.files]
    if any(local) and part:
        first = part.strip("]:")
        if part.startswith(":") and first.isdecimal():
            made.settings["limit"] = int(first)
            return Outcome("carried", note=f"limit: {first}")
        return Outcome("missing", note="a part of a file's rows; nearest: limit: the first rows; all are read now")
    if any(local):
        return Outcome("idle", note="a file has no splits" if base == "train" else "a file is one split")
    made.settings["split"] = name
    return Outcome("carried", note="split")


def _shape(own: Source, made: Dataset) -> Outcome:
    """The format of the rows."""
    kind = own.get("type")
    if isinstance(kind, Mapping) or (kind is None and own.has("field_output", "format")):
        return _template(flat(own.file, kind) if isinstance(kind, Mapping) else own, made)
    name = str(kind)
    if name == "chat_template" or name.startswith(("chat_template.", "sharegpt")):
        return _chat(own, made, name)
    if name == "alpaca":
        made.settings["format"], made.plain = "alpaca", True
        return Outcome("carried", note="the Alpaca prompt, as Axolotl writes it")
    if name in _QUESTIONS:
        prompt, completion = _QUESTIONS[name]
        made.settings |= {"format": "template", "prompt": f"{{{prompt}}}", "completion": f"{{{completion}}}"}
        made.plain = True
        return Outcome(
            "missing", note=f"Axolotl's own words around {prompt}; nearest: {prompt} alone, which is written"
        )
    if name in ("completion", "pretrain"):
        made.settings["format"] = "text"
        column = own.get("field", "text_column", default="text")
        check = "" if column == "text" else f"texts are in the column {column}: call it text"
        return Outcome("carried", note="texts; long ones are not cut into several rows here", check=check)
    if name == "None":
        return Outcome("missing", note="rows of token ids; nearest: the rows that they were made of")
    note = f"the shape {name}; nearest: format: template with prompt: '{{column}}' and completion: '{{column}}'"
    return Outcome("missing", note=note)


def _chat(own: Source, made: Dataset, name: str) -> Outcome:
    column = own.get("field_messages", default="conversations" if name.startswith("sharegpt") else "messages")
    made.settings["format"] = "sharegpt" if column == "conversations" else "messages"
    check = ""
    if column not in ("messages", "conversations"):
        check = f"conversations are in the column {column}: call it messages"
    return Outcome("carried", note="conversations, by the chat template", check=check)


def _template(kind: Source, made: Dataset) -> Outcome:
    """Axolotl's own prompts: texts with places for columns."""
    made.plain = True

    def column(key: str) -> str:
        return "{" + str(kind.get(key)) + "}"

    def filled(text: str) -> str:
        places = {"{instruction}": "field_instruction", "{input}": "field_input", "{output}": "field_output"}
        for place, key in places.items():
            text = text.replace(place, column(key) if kind.has(key) else "")
        return text

    system = column("field_system") if kind.has("field_system") else str(kind.get("system_prompt", default=""))
    if system:
        system = str(kind.get("system_format", default="{system}")).replace("{system}", system)
    form = str(kind.get("format", default="{instruction} {input}" if kind.has("field_input") else "{instruction}"))
    made.settings |= {
        "format": "template", "prompt": system + filled(form),
        "completion": column("field_output") if kind.has("field_output") else "{output}",
    }  # fmt: skip
    other = kind.get("no_input_format")
    check = ""
    if other is not None and other != form and "{input}" in form:
        check = "rows without an input have another prompt there (no_input_format): here all have the same"
    unknown = sorted(key for key in kind.values if key not in _TYPE_KEYS) if kind.values is not None else []
    named = [key for key in unknown if key not in (*_HANDLED, *(k for row in ROWS for k in row.keys))]
    note = "a template" + (f"; not read: {', '.join(named)}" if named else "")
    return Outcome("carried", note=note, check=check)


def _properties(own: Source) -> Outcome:
    mapping = own.get("message_property_mappings")
    known = ({"role": "role", "content": "content"}, {"role": "from", "content": "value"})
    if isinstance(mapping, Mapping) and any(set(mapping.items()) <= set(each.items()) for each in known):
        return Outcome("idle", note="messages of role and content, or of from and value, are read as they are")
    return Outcome("missing", note="other keys of a message; nearest: rows with role and content")


def _speakers(own: Source) -> Outcome:
    given = own.get("roles")
    if isinstance(given, Mapping) and all(
        set(names(each)) <= _SPEAKERS.get(str(to), set()) for to, each in given.items()
    ):
        return Outcome("idle", note="these speakers are known")
    return Outcome("missing", note="other names of speakers; nearest: rows with user, assistant, system and tool")


def _learned(own: Source, made: Dataset) -> Outcome:
    given = set(names(own.get("roles_to_train", default=["assistant"])))
    if given <= _SPEAKERS["assistant"]:
        return Outcome("idle", note="assistant turns are what is learned")
    if {"user", "human"} & given:
        made.train_on_all = True
        return Outcome("carried", note="data.train_on: all")
    return Outcome("missing", note="other turns than the assistant's; nearest: data.train_on: completion, or all")


def _ends(own: Source) -> Outcome:
    if str(own.get("train_on_eos", default="turn")) == "turn":
        return Outcome("idle", note="the end of each learned turn is learned")
    return Outcome("missing", note="other ends of turns; nearest: the end of each learned turn, always")


def datasets(value: Any, source: Source) -> Outcome:
    """Of `datasets`."""
    made = _all(value, "datasets", source)
    settings: dict[str, Any] = {"data.train": [each for one in made for each in one.sources]}
    note = ""
    if any(one.plain for one in made):
        settings["data.chat"] = False
        note = "prompts are plain text there: data.chat: false"
    if any(one.train_on_all for one in made):
        settings["data.train_on"] = "all"
    return Outcome("carried", settings, note, inner=tuple(line for one in made for line in one.lines))


def held_out_sets(value: Any, source: Source) -> Outcome:
    """Of `test_datasets`."""
    made = _all(value, "test_datasets", source)
    settings = {"data.eval": [each for one in made for each in one.sources]}
    return Outcome("carried", settings, inner=tuple(line for one in made for line in one.lines))


def pretraining(value: Any, source: Source) -> Outcome:
    """Of `pretraining_dataset`: texts that are read while training."""
    entries = value if isinstance(value, list) else [value]
    made = _all(
        [{"type": "pretrain", **e} if isinstance(e, Mapping) else e for e in entries], "pretraining_dataset", source
    )
    settings = {"data.train": [each for one in made for each in one.sources], "data.streaming": True}
    return Outcome("carried", settings, "streamed", inner=tuple(line for one in made for line in one.lines))


def sources(source: Source) -> list[dict[str, Any]] | None:
    """All training data as entries of `data.train`."""
    value = source.get("datasets")
    return [each for one in _all(value, "datasets", source) for each in one.sources] if value is not None else None


def _all(value: Any, key: str, source: Source) -> list[Dataset]:
    entries = value if isinstance(value, list) else [value]
    return [dataset(entry, f"{key}[{i}]", source) for i, entry in enumerate(entries) if not is_off(entry)]
