import pytest
import yaml

from jaxlean import config
from jaxlean.config import StepSection
from jaxlean.errors import ConfigError


def test_a_step_is_a_name_or_a_name_with_settings():
    loaded = config.load(None, ["curate.steps=[exact_duplicates, {near_duplicates: {threshold: 0.6}}, quality: null]"])
    assert [step.name for step in loaded.curate.steps] == ["exact_duplicates", "near_duplicates", "quality"]
    assert loaded.curate.steps[1].settings.threshold == 0.6


@pytest.mark.parametrize("one", ["quality", "[quality]", "{quality: {profile: rows}}"])
def test_one_step_needs_no_list(one):
    assert [step.name for step in config.load(None, [f"curate.steps={one}"]).curate.steps] == ["quality"]


def test_an_override_reaches_into_a_step_that_the_file_only_names(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("curate: {steps: [exact_duplicates, near_duplicates]}\n")
    loaded = config.load(file, ["curate.steps.1.near_duplicates.threshold=0.55"])
    assert loaded.curate.steps[1].near_duplicates.threshold == 0.55


def test_what_is_dumped_is_what_was_said_and_loads_again():
    loaded = config.load(None, ["curate.steps=[quality, {leakage: {action: keep}}]"])
    dumped = yaml.safe_load(config.dump(loaded))
    assert [list(step) for step in dumped["curate"]["steps"]] == [["quality"], ["leakage"]]
    assert config.build(dumped) == loaded


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            "[near_duplicate]",
            "unknown key: curate.steps.0.near_duplicate\n  where:  {}\n  fix:    did you mean 'near_duplicates'?",
        ),
        (
            "[quality, {near_duplicates: {treshold: 1}}]",
            "unknown key: curate.steps.1.near_duplicates.treshold\n  where:  {}\n  fix:    did you mean 'threshold'?",
        ),
        ("[{quality: {}, leakage: {}}]", "curate.steps.0: an entry is one step, not quality and leakage"),
        ("[{}]", "curate.steps.0: an entry is one step, not none"),
        ("[{near_duplicates: {threshold: 2}}]", "curate.steps.0.near_duplicates.threshold: Input should be less than"),
    ],
)
def test_a_wrong_step_is_named(steps, said):
    override = f"curate.steps={steps}"
    with pytest.raises(ConfigError) as error:
        config.load(None, [override])
    assert said.format(override) in str(error.value)


def test_every_step_has_settings_of_its_own():
    needed = {"importance": {"target": "target.jsonl"}, "keep": {"count": 3}}
    for name in StepSection.model_fields:
        step = StepSection.model_validate({name: needed[name]} if name in needed else name)
        assert step.name == name
        assert step.settings == type(step.settings)(**needed.get(name, {}))
