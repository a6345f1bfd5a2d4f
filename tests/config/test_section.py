import pytest
from pydantic import ValidationError

from jaxlean.config.section import Fraction, Section, named


class Example(Section):
    """One of each."""

    share: Fraction = 0.5
    rows: int = named(3, "How many.", "num_rows", gt=0)


def test_a_field_has_its_own_name_and_others() -> None:
    assert Example.model_validate({"num_rows": 4}) == Example.model_validate({"rows": 4}) == Example(rows=4)
    assert Example.model_fields["rows"].description == "How many."


@pytest.mark.parametrize("values", [{"shares": 0.5}, {"share": 1.1}, {"share": -0.1}, {"rows": 0}, {"num_rows": "x"}])
def test_what_is_unknown_or_out_of_bounds_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Example.model_validate(values)


def test_a_value_is_checked_when_it_is_assigned() -> None:
    example = Example()
    with pytest.raises(ValidationError, match="greater than 0"):
        example.rows = -1
    assert example.rows == 3
