"""JSON that every reader takes."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage import strict_json
from orchestrator.tune.records import Trial

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(VALUES)
def test_any_value_is_strict_json(value: Any) -> None:
    found = json.loads(strict_json.dumps(value), parse_constant=pytest.fail)
    assert found == strict_json.finite(value)


def test_only_numbers_that_json_has_not_are_null() -> None:
    value = {"a": [1, 0.1, math.nan, (math.inf, True)], 2: None}
    assert strict_json.finite(value) == {"a": [1, 0.1, None, [None, True]], "2": None}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_trial_whose_loss_is_no_number_comes_back(value: float) -> None:
    curve = [{"step": 1.0, "loss": value}]
    trial = Trial(number=1, configuration=1, overrides={}, metrics={"loss": value}, curve=curve)
    content = trial.model_dump_json()
    json.loads(content, parse_constant=pytest.fail)
    loaded = Trial.model_validate_json(content)
    assert loaded.metrics["loss"] == pytest.approx(value, nan_ok=True)
    assert loaded.curve[0]["loss"] == pytest.approx(value, nan_ok=True)
