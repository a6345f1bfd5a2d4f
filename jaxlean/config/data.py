"""What is learned from."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from jaxlean.config.curriculum import CurriculumSection
from jaxlean.config.section import Fraction, Section, named


class SourceSection(Section):
    """One dataset: a file (.jsonl .json .csv .tsv .parquet .txt), a `datasets` folder, a URL, or a hub id."""

    path: str = Field(description="File, folder or hub id.")
    split: str = Field("train", description="Split of a folder or hub dataset.")
    name: str | None = Field(None, description="Configuration name of a hub dataset (`datasets` calls it name).")
    weight: float | None = Field(
        None,
        gt=0,
        description="Share of this source in the mix, if all sources have one; default: every row counts alike.",
    )
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "text", "template"] = named(
        "auto", "Shape of a row. auto recognises it from the columns.", "type"
    )
    prompt: str | None = Field(None, description="Template of the prompt over the columns: 'Classify: {text}'.")
    completion: str | None = Field(None, description="Template of what is learned: '{category}'.")
    system: str | None = Field(None, description="System message put before each conversation.")
    limit: PositiveInt | None = Field(None, description="Read only the first rows.")


class DataSection(Section):
    """What is learned from, and how rows become tokens."""

    train: list[SourceSection] | None = named(
        None, "Training data: a path, or a list of sources.", "dataset", "datasets"
    )
    eval: list[SourceSection] | None = Field(None, description="Held-out data: a path, or a list of sources.")
    eval_fraction: Fraction = Field(0.0, description="Without `eval`: this share of the training rows is held out.")
    prompt: str | None = Field(None, description="Default `prompt` template of every source.")
    completion: str | None = Field(None, description="Default `completion` template of every source.")
    system: str | None = Field(None, description="Default `system` message of every source.")
    text_column: str | list[str] | None = named(
        None,
        "task classify, tag, embed: the column of the text (tag: of the words), or two columns: [first, second] "
        "text of a pair, [anchor, positive]. Default: recognised by its name.",
        "text_column_name", "text_column_names",
    )  # fmt: skip
    label_column: str | None = named(
        None, "task classify, tag: the column of the label (tag: of the words' tags). Default: recognised.",
        "label_column_name", "target_column",
    )  # fmt: skip
    image_column: str | None = named(
        None, "task classify of a model of images: the column of the image. Default: recognised.", "image_column_name"
    )
    augment: bool = Field(
        False,
        description="Images only: learn from a random part of each, mirrored or not, drawn anew each epoch. (Not where "
        "left and right matter.)",
    )
    labels: list[str] | None = Field(
        None,
        description="task classify, tag: names of the labels in the order of their ids; default: those of the model, "
        "if it has a trained head, else those in the training data, sorted.",
    )
    chat: bool = Field(
        True, description="Render prompt/completion rows through the chat template where the tokenizer has one."
    )
    max_length: PositiveInt = named(1024, "Tokens a row may have.", "max_seq_length", "cutoff_len", "sequence_len")
    on_long: Literal["error", "truncate", "drop"] = named(
        "error", "What happens to a longer row; the counts are printed.", "excess_length_strategy"
    )
    packing: bool = named(
        True,
        "Put several rows into one sequence, each seeing only itself. (Not for task: embed: a text has its own.)",
        "sample_packing",
    )
    train_on: Literal["completion", "all"] = Field(
        "completion", description="Loss on assistant/completion tokens only, or on every token."
    )
    shuffle: bool = Field(True, description="A new order each epoch, from the seed.")
    curriculum: CurriculumSection | None = Field(
        None, description="Easy rows first: length, rarity, loss, or a section; default: at random."
    )
    streaming: bool = Field(
        False, description="Read while training, for data larger than the disk; needs train.max_steps."
    )

    @model_validator(mode="before")
    @classmethod
    def _path_is_a_source(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in ("train", "eval", "dataset", "datasets"):
                value = values.get(key)
                if isinstance(value, str):
                    values = {**values, key: [{"path": value}]}
                elif isinstance(value, dict):
                    values = {**values, key: [value]}
                elif isinstance(value, list):
                    values = {**values, key: [{"path": v} if isinstance(v, str) else v for v in value]}
        return values
