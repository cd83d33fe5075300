"""Numbers as people read them: three digits, a unit, and no exponent."""

import pytest

from raffm_ray.basics.formatting import human_flops, human_joules, human_seconds, rounded, setting_text


@pytest.mark.parametrize("value", [1.0, 12.34, 999.4, 999.6, 1420.4, 12_345_678.0])
def test_no_large_number_has_an_exponent(value: float) -> None:
    assert "e" in f"{10 * value:.1g}"  # control: plain formatting gives some one
    for shown in (rounded(value), human_flops(1e12 * value), human_joules(value), human_seconds(value)):
        assert "e" not in shown
        assert float(rounded(value).replace(",", "")) == pytest.approx(value, rel=6e-3)


def test_units_suit_the_value() -> None:
    assert [human_joules(value) for value in (0.0, 0.0123, 0.9999, 5.0, 1420.0, 8.2e6)] == [
        "0 J", "12.3 mJ", "1,000 mJ", "5 J", "1.42 kJ", "8.2 MJ",
    ]  # fmt: skip
    assert [human_seconds(value) for value in (0.01234, 1.0, 1420.4)] == ["12.3 ms", "1 s", "1,420 s"]


def test_settings_in_bytes_have_a_unit_and_fractions_stay() -> None:
    assert setting_text("fleet.budgets.pi.memory_bytes", 5e8) == "500.0 MB"
    assert setting_text("fleet.budgets.pi.memory_bytes", 0.25) == "0.25"
    assert setting_text("fleet.budgets.pi.params", 5e8) == "5e+08"  # control: only bytes have a unit
    assert setting_text("local.learning_rate", 0.0012345678) == "0.001235"
    assert [setting_text("x", value) for value in (True, None, "a")] == ["True", "None", "a"]
