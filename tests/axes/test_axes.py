"""Laws 1, 3 and 4 for `take`, `scatter_add` and coverage, on dims of every form; each with a control that must fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raffm_ray.axes.indexing import Axis, AxisError, Plan, check_plan, coverage, dim_size, scatter_add, take
from raffm_ray.axes.layout import Layout, Parameter
from raffm_ray.axes.nesting import cut_layout, within

DIMS = [
    (("residual",), ("heads", "qk")),
    (("heads", "qk"), ("residual",)),
    (("heads", "qk"),),
    (("residual",), (), ()),
    ((("heads", "qk"), ("heads", "qk"), ("heads", "vo")), ("residual",)),
    (("ffn",), ("residual",)),
    (("heads", "halves", "vo"), ("residual",)),
    (("residual",), ("ffn",), ("heads",)),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Axis], Plan, tuple, np.random.Generator]:
    size = st.integers(1, 5)
    axes = {
        "residual": Axis("residual", draw(size)),
        "heads": Axis("heads", draw(size)),
        "qk": Axis("qk", draw(size), parent="heads"),
        "vo": Axis("vo", draw(size), parent="heads"),
        "halves": Axis("halves", 2),
        "ffn": Axis("ffn", draw(size)),
    }
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = {}
    for name, axis in axes.items():
        form = draw(st.sampled_from(["absent", "shared", "per parent"]))
        count = draw(st.integers(1, axis.size))
        if form == "per parent" and axis.parent:
            kept[name] = np.stack([rng.permutation(axis.size)[:count] for _ in range(axes[axis.parent].size)])
        elif form != "absent":
            kept[name] = rng.permutation(axis.size)[:count]
    return axes, Plan(kept), draw(st.sampled_from(DIMS)), rng


def tensor(dims: tuple, axes: dict[str, Axis], rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal([dim_size(dim, axes) if dim else 3 for dim in dims]))


@given(cases())
def test_law_1_scatter_add_is_the_adjoint_of_take(case) -> None:
    axes, plan, dims, rng = case
    check_plan(plan, axes)
    x = tensor(dims, axes, rng)
    part = take(x, dims, axes, plan)
    y = torch.from_numpy(rng.standard_normal(part.shape))
    back = scatter_add(torch.zeros_like(x), y, dims, axes, plan)
    torch.testing.assert_close((part * y).sum(), (x * back).sum())
    torch.testing.assert_close(take(back, dims, axes, plan), y)


@given(cases())
def test_law_1_gradient_of_take_is_scatter_add(case) -> None:
    axes, plan, dims, rng = case
    x = tensor(dims, axes, rng).requires_grad_()
    part = take(x, dims, axes, plan)
    y = torch.from_numpy(rng.standard_normal(part.shape))
    part.backward(y)
    torch.testing.assert_close(x.grad, scatter_add(torch.zeros_like(x), y, dims, axes, plan))


@given(cases())
def test_every_head_keeps_its_own_indices(case) -> None:
    # The laws hold for any consistent labelling of units; only an oracle written apart tells whose units are kept.
    axes, plan, _, rng = case
    heads, size = axes["heads"].size, axes["qk"].size
    x = torch.from_numpy(rng.standard_normal((heads * size, 3)))
    expected = []
    for head in plan.get("heads", np.arange(heads)):
        kept = plan.get("qk", np.arange(size))
        expected += [x[head * size + index] for index in (kept[head] if kept.ndim == 2 else kept)]
    assert torch.equal(take(x, (("heads", "qk"), ()), axes, plan), torch.stack(expected))


def test_law_1_control_the_leading_rows_of_the_whole_matrix_are_another_part() -> None:
    axes = {"heads": Axis("heads", 2), "qk": Axis("qk", 4, parent="heads")}
    x = torch.arange(8.0)
    right = take(x, (("heads", "qk"),), axes, Plan({"qk": [0, 1]}))
    assert right.tolist() == [0, 1, 4, 5]
    assert right.tolist() != x[:4].tolist()


@given(cases(), st.integers(1, 5))
def test_law_3_cutting_a_sorted_tensor_is_cutting_by_the_order(case, count) -> None:
    axes, _, dims, rng = case
    order = {
        name: np.stack([rng.permutation(axis.size) for _ in range(axes[axis.parent].size)])
        if axis.parent
        else rng.permutation(axis.size)
        for name, axis in axes.items()
    }
    x = tensor(dims, axes, rng)
    first = {name: min(count, axis.size) for name, axis in axes.items() if name not in ("heads", "halves")}
    sorted_first = take(
        take(x, dims, axes, Plan({name: order[name] for name in first})),
        dims,
        axes,
        Plan({n: np.arange(k) for n, k in first.items()}),
    )
    by_order = take(x, dims, axes, Plan({name: order[name][..., :k] for name, k in first.items()}))
    assert torch.equal(sorted_first, by_order)


def test_law_3_control_an_order_of_another_head_gives_another_tensor() -> None:
    axes = {"heads": Axis("heads", 2), "qk": Axis("qk", 3, parent="heads")}
    x = torch.arange(6.0)
    rows = np.array([[2, 0, 1], [1, 2, 0]])
    assert not torch.equal(
        take(x, (("heads", "qk"),), axes, Plan({"qk": rows})), take(x, (("heads", "qk"),), axes, Plan({"qk": rows[::-1]}))
    )


@settings(max_examples=50)
@given(cases(), st.lists(st.integers(1, 50), min_size=1, max_size=4))
def test_law_4_sums_and_coverage_equal_the_dense_oracle(case, weights) -> None:
    axes, first, dims, rng = case
    old = tensor(dims, axes, rng)
    summed, covered = torch.zeros_like(old), torch.zeros(old.shape)
    dense_sum, dense_weight = torch.zeros_like(old), torch.zeros_like(old)
    for weight in weights:
        plan = Plan({name: kept for name, kept in first.items() if rng.random() < 0.6})
        trained = take(old, dims, axes, plan) + torch.from_numpy(rng.standard_normal(take(old, dims, axes, plan).shape))
        scatter_add(total=summed, part=trained, dims=dims, axes=axes, plan=plan, weight=weight)
        covered += coverage(old.shape, dims, axes, plan, weight)
        mask = scatter_add(torch.zeros_like(old), torch.ones_like(trained), dims, axes, plan)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        full = scatter_add(torch.zeros_like(old), trained, dims, axes, plan)
        dense_sum += weight * mask * full
        dense_weight += weight * mask
    torch.testing.assert_close(covered.double(), dense_weight)
    expected = torch.where(dense_weight > 0, dense_sum / dense_weight.clamp(min=1), old)
    torch.testing.assert_close(torch.where(covered > 0, summed / covered.double().clamp(min=1), old), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32])
def test_any_dtype(dtype: torch.dtype) -> None:
    axes = {"a": Axis("a", 4), "b": Axis("b", 3)}
    x = torch.arange(12).reshape(4, 3).to(dtype)
    plan = Plan({"a": [3, 1], "b": [2]})
    part = take(x, (("a",), ("b",)), axes, plan)
    assert part.dtype == dtype
    assert part.tolist() == [[11], [5]]
    assert scatter_add(total=torch.zeros_like(x), part=part, dims=(("a",), ("b",)), axes=axes, plan=plan, weight=2)[3, 2] == 22


def test_parts_are_added_in_the_total_s_dtype() -> None:
    axes = {"a": Axis("a", 2)}
    total = scatter_add(
        total=torch.zeros(2),
        part=torch.ones(1, dtype=torch.bfloat16),
        dims=(("a",),),
        axes=axes,
        plan=Plan({"a": [1]}),
        weight=0.5,
    )
    assert total.tolist() == [0, 0.5]


@given(cases())
def test_a_nested_plan_in_the_outer_one_s_coordinates_cuts_the_same(case) -> None:
    axes, outer, dims, rng = case
    layout = Layout(axes, {"x": Parameter(dims)})
    inner = Plan(
        {name: kept[..., : max(1, kept.shape[-1] // 2)] for name, kept in outer.items() if name != "heads"}
        | {n: outer[n] for n in outer if n == "heads"}
    )
    x = tensor(dims, axes, rng)
    small = cut_layout(layout, outer)
    relative = within(inner, outer, layout)
    assert torch.equal(take(take(x, dims, axes, outer), dims, small.axes, relative), take(x, dims, axes, inner))


def test_a_plan_that_is_not_nested_is_refused() -> None:
    layout = Layout({"a": Axis("a", 4)}, {"x": Parameter((("a",),))})
    with pytest.raises(AxisError, match="'a'.*outer one does not"):
        within(Plan({"a": [0, 3]}), Plan({"a": [0, 1]}), layout)


AXES = {"heads": Axis("heads", 2), "qk": Axis("qk", 4, parent="heads"), "ffn": Axis("ffn", 5)}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"fnf": [0]}, "axis 'fnf' is not one of this model's: heads, qk, ffn"),
        ({"ffn": [5]}, "axis 'ffn': expected indices in 0..4, got 5..5"),
        ({"ffn": [-1]}, "axis 'ffn': expected indices in 0..4, got -1"),
        ({"ffn": [1, 1]}, "axis 'ffn': expected every index once"),
        ({"ffn": [[1], [2]]}, r"axis 'ffn': expected kept indices of shape \[k\]"),
        ({"qk": [[0], [1], [2]]}, "axis 'qk': expected one row for each of 2 'heads', got 3"),
        ({"ffn": []}, "axis 'ffn': expected kept indices .* k > 0"),
    ],
)
def test_a_plan_that_cannot_be_names_axis_got_and_expected(plan, words) -> None:
    with pytest.raises(AxisError, match=words):
        check_plan(Plan(plan), AXES)


def test_shapes_that_do_not_fit_name_dim_got_and_expected() -> None:
    with pytest.raises(AxisError, match=r"dim \('ffn',\): expected length 5, got 6"):
        take(torch.zeros(6), (("ffn",),), AXES, Plan({"ffn": [0]}))
    with pytest.raises(AxisError, match="expected a tensor of 1 dims"):
        take(torch.zeros(5, 1), (("ffn",),), AXES, Plan())
    with pytest.raises(AxisError, match=r"expected a part of shape \(1,\).*got \(2,\)"):
        scatter_add(torch.zeros(5), torch.zeros(2), (("ffn",),), AXES, Plan({"ffn": [0]}))
    with pytest.raises(AxisError, match="axis 'qk': expected its parent 'heads' outside it"):
        take(torch.zeros(4), (("qk",),), AXES, Plan({"qk": [[0], [1]]}))


def test_plans_are_values() -> None:
    first, second = Plan({"a": [0, 1], "b": [2]}), Plan({"b": np.array([2]), "a": (0, 1)})
    assert first == second
    assert hash(first) == hash(second)
    assert first != Plan({"a": [1, 0], "b": [2]})
    with pytest.raises(ValueError, match="read-only"):
        first["a"][0] = 5
