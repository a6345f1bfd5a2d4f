from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import config
from jaxlean.config import RunConfig
from jaxlean.config.read import told
from jaxlean.errors import ConfigError

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_no_file_and_no_override_is_all_defaults() -> None:
    assert config.load(None) == RunConfig() == config.build({})


def test_a_file_and_overrides_make_one_config(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 3\ntrain: {learning_rate: 1e-4, max_steps: 5}\ndata: {train: a.jsonl}\n")
    loaded = config.load(file, ["train.max_steps=7", "lora.r=4", "train.warmup_steps=null", "data.streaming=true"])
    assert (loaded.seed, loaded.train.learning_rate, loaded.train.max_steps) == (3, 1e-4, 7)
    assert loaded.lora is not None
    assert (loaded.lora.r, loaded.train.warmup_steps, loaded.data.streaming) == (4, None, True)
    assert loaded.data.train is not None
    assert [source.path for source in loaded.data.train] == ["a.jsonl"]


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, "# nothing yet\n")) == RunConfig()


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),  # YAML 1.1 reads this one as text
        ("train.learning_rate=0.5", "train.learning_rate", 0.5),
        ("lora=null", "lora", None),
        ("lora.target_modules=[q_proj, v_proj]", "lora.target_modules", ["q_proj", "v_proj"]),
        ("lora.target_modules='.*mlp.*'", "lora.target_modules", ".*mlp.*"),
        ("output_dir=a=b", "output_dir", "a=b"),
        ("model.path=org/name", "model.path", "org/name"),
        ("train.remat=full", "train.remat", "full"),
        ("train.remat=[gate, up]", "train.remat", ["gate", "up"]),
        ("train.remat={save: [gate], offload: [up]}", "train.remat", {"save": ["gate"], "offload": ["up"]}),
        ("train.gradient_checkpointing=true", "train.remat", "full"),
        ("train.gradient_checkpointing=False", "train.remat", "none"),
        ("train.memory_budget=12GB", "train.memory_budget", 12 * 10**9),
        ("train.memory_budget=1.5 GiB", "train.memory_budget", 3 * 2**29),
        ("train.memory_budget=2e9", "train.memory_budget", 2 * 10**9),
        ("train.memory_budget=800mb", "train.memory_budget", 800 * 10**6),
        ("train.memory_budget=null", "train.memory_budget", None),
        ("eval.before=no", "eval.before", False),
    ],
)
def test_the_value_of_an_override_is_yaml(override: str, path: str, value: Any) -> None:
    found: Any = config.load(None, [override])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_an_override_reaches_into_a_list_and_revives_a_null(tmp_path: Path) -> None:
    file = write(tmp_path, "data: {train: [{path: a}, {path: b}]}\nlora: null\n")
    loaded = config.load(file, ["data.train.1.weight=2", "lora.r=8"])
    assert loaded.data.train is not None
    default = config.SourceSection(path="a").weight
    assert [(source.path, source.weight) for source in loaded.data.train] == [("a", default), ("b", 2.0)]
    assert loaded.lora is not None
    assert loaded.lora.r == 8


def test_a_later_override_wins() -> None:
    assert config.load(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"an override is section\.key=value\n  got:    'seed'"),
        ("=3", r"an override is section\.key=value"),
        ("train.lerning_rate=1", r"unknown key: train\.lerning_rate\n.*\n.*did you mean 'learning_rate'"),
        ("data.train.2.weight=1", r"goes through a value that has no keys\n  where:  data\.train"),
        ("data.train.2=a", r"no such list entry\n.*\n  wanted: an index below 2"),
    ],
)
def test_an_override_that_cannot_be_is_an_error(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, "data: {train: [{path: a}, {path: b}]}\n"), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"not valid YAML\n  where:  .*run\.yaml:3\n"),
        ("- a\n- b\n", r"a config is a mapping of sections\n  where:  .*run\.yaml\n  got:    list"),
        ("seed: x\n", r"seed: .*\n  where:  .*run\.yaml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(write(tmp_path, text))


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such config file\n  where:  .*absent\.yaml"):
        config.load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="the config file cannot be read"):
        config.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConfigError, match="the config file cannot be read"):
        config.load(tmp_path / "bytes.yaml")


def test_relative_paths_are_found_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, current = tmp_path / "beside", tmp_path / "current"
    for folder in (beside, current):
        folder.mkdir()
        (folder / "both.jsonl").touch()
    (beside / "one.jsonl").touch()
    monkeypatch.chdir(current)
    file = write(
        beside, "model: {path: org/name}\ndata: {train: [one.jsonl, both.jsonl, absent.jsonl], eval: one.jsonl}\n"
    )
    loaded = config.load(file)
    assert loaded.data.train is not None
    assert loaded.data.eval is not None
    assert [s.path for s in loaded.data.train] == [str(beside / "one.jsonl"), "both.jsonl", "absent.jsonl"]
    assert loaded.data.eval[0].path == str(beside / "one.jsonl")
    assert loaded.model.path == "org/name"


def test_the_paths_of_steps_are_found_beside_the_config_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"
    (beside / "adapter").mkdir(parents=True)
    (beside / "one.jsonl").touch()
    (tmp_path / "here.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    text = """
data: {train: [one.jsonl, here.jsonl]}
curate:
  steps:
  - importance: {target: one.jsonl}
  - semantic_duplicates: {vectors: {model: adapter}}
  - loss: {adapter: adapter}
  - learnability: {run: {adapter: adapter}}
  - keep: {mix: {one.jsonl: 1, here.jsonl: 2}, vectors: {model: org/name}}
"""
    steps = config.load(write(beside, text)).curate.steps
    target, duplicates, loss, learnability, keep = (step.settings for step in steps)
    assert target.target == str(beside / "one.jsonl")
    assert duplicates.vectors.model == loss.adapter == learnability.run.adapter == str(beside / "adapter")
    assert keep.mix == {str(beside / "one.jsonl"): 1, "here.jsonl": 2}
    assert keep.vectors.model == "org/name"


@given(
    seed=st.integers(),
    rate=st.floats(1e-12, 1e3),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lora=st.none()
    | st.fixed_dictionaries({"r": st.integers(1, 512), "target_modules": st.just(["q_proj"]) | st.just("q.*")}),
    train=st.none()
    | st.lists(st.fixed_dictionaries({"path": st.just("a"), "weight": st.floats(1e-3, 10)}), min_size=1),
)
def test_dump_is_read_back_equal(seed: int, rate: float, name: str | None, lora: Any, train: Any) -> None:
    values = {
        "seed": seed,
        "train": {"learning_rate": rate},
        "report": {"run_name": name},
        "lora": lora,
        "data": {"train": train},
    }
    built = config.build(values)
    assert config.build(yaml.safe_load(config.dump(built))) == built


def test_the_quickstart_has_a_config() -> None:
    assert (CONFIGS / "quickstart.yaml").is_file()


# the table of hardware and what a cluster's scheduler reads are no runs
RUNS = [file for file in sorted(CONFIGS.glob("*.yaml")) if file.stem not in ("hardware", "regions")]


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_every_config_of_the_project_loads(file: Path) -> None:
    config.load(file)


@pytest.mark.parametrize(("text", "value"), [("false", False), ("off", False), ("true", True), ("a.db", "a.db")])
def test_a_word_or_a_file_takes_words_for_yes_and_no(text, value):
    assert config.load(None, [f"cost.ledger={text}"]).cost.ledger == value


def test_text_settings_take_an_override_as_it_stands():
    loaded = config.load(
        None, ["data.prompt=Classify: {text}", "data.completion={category}", "report.run_name=7", "data.system=null"]
    )
    assert loaded.data.prompt == "Classify: {text}"
    assert loaded.data.completion == "{category}"
    assert loaded.report.run_name == "7"
    assert loaded.data.system is None
    assert config.load(None, ["lora.target_modules=[q_proj, v_proj]"]).lora.target_modules == ["q_proj", "v_proj"]


def test_a_file_and_an_override_may_use_different_names(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {lr: 1.0, batch_size: 3}\n")
    loaded = config.load(file, ["train.learning_rate=2"])
    assert (loaded.train.learning_rate, loaded.train.per_device_train_batch_size) == (2.0, 3)
    file.write_text("train: {lr: 1.0, learning_rate: 2.0}\n")
    with pytest.raises(ConfigError, match="learning_rate is given twice"):
        config.load(file)


def test_an_override_into_a_section_that_the_file_switches_off(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora: null\n")
    assert config.load(file).lora is None
    assert config.load(file, ["lora.r=8"]).lora.r == 8


def test_an_override_through_a_value_that_has_no_keys():
    with pytest.raises(ConfigError, match=r"no keys[\s\S]*data\.train\.0"):
        config.load(None, ["data.train=[a.jsonl]", "data.train.0.limit=5"])


def test_training_data_on_the_command_line_does_not_keep_the_files_held_out_rows(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {train: theirs.jsonl, eval: theirs_heldout.jsonl}\n")
    mine = config.load(file, ["data.train=mine.jsonl"])
    assert (mine.data.eval, mine.data.eval_fraction) == (None, 0.05)
    both = config.load(file, ["data.train=mine.jsonl", "data.eval=mine_heldout.jsonl"])
    assert (both.data.eval[0].path, both.data.eval_fraction) == ("mine_heldout.jsonl", 0.0)
    assert config.load(file).data.eval[0].path == "theirs_heldout.jsonl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_stepz=5", "did you mean 'max_steps'"),
        ("curate.steps=[{near_duplicates: {treshold: 0.5}}]", "did you mean 'threshold'"),
        ("data.dataset=[{path: a.jsonl, wieght: 2}]", "did you mean 'weight'"),
        ("data.curriculum.difficulty=lenght", "did you mean 'length'"),
    ],
)
def test_what_is_wrong_with_an_override_is_not_blamed_on_the_file(tmp_path, override, message):
    file = write(tmp_path, "task: generate")
    with pytest.raises(ConfigError, match=message) as error:
        config.load(file, ["seed=3", override])
    assert error.value.where == override
    file = write(tmp_path, "train: {max_stepz: 5}")
    with pytest.raises(ConfigError, match="max_steps") as error:
        config.load(file, ["train.learning_rate=0.1"])
    assert error.value.where == file


def test_what_was_told_is_what_was_set_and_builds_the_same():
    loaded = config.load(None, ["lora=null", "train.remat=none", "data.train=rows.jsonl", "mesh.fsdp=2"])
    values = told(loaded)
    assert values == {
        "lora": None,
        "train": {"remat": "none"},
        "data": {"train": values["data"]["train"]},
        "mesh": {"fsdp": 2},
    }
    assert config.build(values) == loaded
    loaded.cost.usd_per_hour = 2.0  # in a section that was not set
    assert told(loaded)["cost"] == {"usd_per_hour": 2.0}
    assert told(config.build({})) == {}


@pytest.mark.parametrize("order", [("mesh=auto", "mesh.host_devices=4"), ("mesh.host_devices=4", "mesh=auto")])
def test_auto_stands_beside_what_else_is_said_of_the_mesh(order):
    mesh = config.load(None, [*order, "mesh.context=2"]).mesh
    assert (mesh.auto, mesh.host_devices, mesh.context) == (True, 4, 2)


def test_an_axis_without_devices():
    with pytest.raises(ConfigError, match="1 device or more"):
        config.load(None, ["mesh.data=0"])
