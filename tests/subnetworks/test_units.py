"""Which units each device type keeps, and how much of the training reached them: counted exactly, recorded, drawn."""

import numpy as np
import pytest
from conftest import architecture_case, tiny_experiment
from plans import masks, random_cut

from raffm_ray.axes.indexing import Plan
from raffm_ray.basics.errors import UserError
from raffm_ray.reports.unit_picture import picture_of_units
from raffm_ray.runs.simulation import simulate
from raffm_ray.subnetworks.extraction import kind_of
from raffm_ray.subnetworks.unit_coverage import add_reached, countable, kept_units, read_units, units_of, write_units

CASES = [("vit", "image_classification"), ("llama", "sequence_classification")]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_a_unit_is_reached_where_some_of_its_entries_are(name, head, rng) -> None:
    """Against the masks of cuts, an entry's own: a unit is kept exactly if any entry of it is."""
    architecture = architecture_case(name, head)
    layout, shapes = architecture.layout, architecture.shapes
    plans = [random_cut(layout, rng, ("groups", "heads", "ffn", "residual"), layers=number % 2 == 1) for number in range(4)]
    weights = {0: 2.0, 1: 3.5, 3: 1.0}
    reached = add_reached(add_reached({}, {2: 7.0}, plans, layout), weights, plans, layout)
    expected = {axis: np.zeros(layout.axes[axis].size) for axis in countable(layout.axes) if axis not in layout.layer_axes}
    for number, weight in {2: 7.0, **weights}.items():
        mask = masks(layout, shapes, plans[number])
        for axis, values in expected.items():
            for unit in range(len(values)):
                single = masks(layout, shapes, Plan({axis: [unit]}))
                without = masks(layout, shapes, Plan({axis: [one for one in range(len(values)) if one != unit]}))
                own = {key: (single[key] - without[key]).clamp(min=0) for key in single}
                values[unit] += weight * any(bool((own[key] * mask[key]).any()) for key in own)
    for axis, values in expected.items():
        np.testing.assert_array_equal(reached[axis], values, err_msg=axis)
    assert any(not np.array_equal(kept_units(layout, plans[0])[axis], kept_units(layout, plans[1])[axis]) for axis in expected)


def test_a_run_records_its_units_and_damage_is_told(out) -> None:
    simulate(tiny_experiment(), out)
    found = read_units(out / "units.parquet")
    heads = [one for one in found if kind_of(one.axis) == "heads"]
    assert len(heads) == 3
    for one in found:
        assert list(one.kept) == ["raspberry_pi_4", "raspberry_pi_5", "laptop", "jetson_agx_orin", "v100"]
        assert one.kept["v100"].all()
        assert (one.reached >= 0).all()
        assert one.reached.max() == pytest.approx(1.0)
    assert any(not one.kept["raspberry_pi_4"].all() for one in found)
    assert any(one.reached.min() < 1.0 for one in found)
    picture = picture_of_units(found)
    assert picture is not None
    content = (out / "units.parquet").read_bytes()
    for damaged in (content[:-9], content[: len(content) // 2], b""):
        (out / "units.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"units\.parquet: damaged or not a record of units"):
            read_units(out / "units.parquet")


def test_what_is_read_is_what_was_written_and_nothing_to_cut_has_no_picture(tmp_path) -> None:
    layout = architecture_case("bert", "sequence_classification").layout
    some = Plan({"0/heads": [2], "1/ffn": [1, 3]})
    units = units_of(layout, add_reached({}, {0: 1.0, 1: 3.0}, [Plan(), some], layout), 4.0, {"small": some, "large": Plan()})
    write_units(tmp_path / "units.parquet", units)
    for one, again in zip(units, read_units(tmp_path / "units.parquet"), strict=True):
        assert one.axis == again.axis
        np.testing.assert_array_equal(one.reached, again.reached)
        assert all(np.array_equal(one.kept[name], again.kept[name]) for name in ("small", "large"))
    by_axis = {one.axis: one for one in units}
    assert by_axis["0/heads"].reached.tolist() == [0.25, 0.25, 1.0]
    assert by_axis["0/heads"].kept["small"].tolist() == [False, False, True]
    assert picture_of_units(units_of(layout, {}, 0.0, {"large": Plan()})) is None
