from jaxlean.config.quality import QualitySection
from jaxlean.data.quality import RULES


def test_every_rule_has_its_setting_and_every_bound_its_rule():
    bounds = {name for name in QualitySection.model_fields if name.startswith(("min_", "max_"))}
    assert bounds - {"min_language_probability"} == set(RULES)


def test_no_bound_is_set_unless_somebody_sets_it():
    settings = QualitySection()
    assert all(getattr(settings, name) is None for name in RULES)
