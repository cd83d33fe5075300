"""Norms of a subnetwork whose residual stream is cut.

A norm over the kept channels S sees another mean and deviation than the full one did. With z = (x - mu) / sigma of the full
stream, the full norm's output on S is (x - mu_S) / sigma_S * (sigma_S / sigma) + (mu_S - mu) / sigma, so folding the expectations
of the two factors into gain and bias restores it on average. Both follow, for any S, from the per-channel mean and mean square of
z, which clients can report as sums. Root mean square norms subtract no mean: z = x / rms, and only the gain is corrected.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raffm_ray.axes.indexing import Plan, dim_axes
from raffm_ray.axes.layout import Layout
from raffm_ray.models.hooks import observe, real_positions

MEAN, SQUARE, POSITIONS = "norm_mean", "norm_square", "norm_positions"


def norm_statistics(model: nn.Module, layout: Layout, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums over examples and positions of z and z^2 for every norm, shape [residual], and the count of positions; float64.

    Norms that do not subtract a mean report no sums of z. Padded positions do not count.
    """
    totals: dict[str, Tensor] = {}
    batch: dict[str, Tensor] = {}

    def hook(name: str) -> RemovableHandle:
        norm = model.get_submodule(name)
        centred = isinstance(norm, nn.LayerNorm)
        eps = float(getattr(norm, "eps", getattr(norm, "variance_epsilon", 0.0)))

        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = real_positions(inputs[0].detach().double(), batch, layout.norm_positions.get(name))
            x = x - x.mean(-1, keepdim=True) if centred else x
            z = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
            sums = {SQUARE: z.square().sum(0), POSITIONS: torch.tensor(float(len(z)), dtype=torch.float64)}
            for key, value in (sums | ({MEAN: z.sum(0)} if centred else {})).items():
                totals[f"{key}@{name}"] = totals.get(f"{key}@{name}", torch.zeros_like(value.cpu())) + value.cpu()

        return norm.register_forward_pre_hook(measure)

    handles = [hook(name) for name in layout.norms]
    observe(model, handles, batches, batch)
    return totals


def norm_statistics_size(layout: Layout) -> int:
    """How many numbers `norm_statistics` returns; norms that subtract a mean are those that have a bias."""
    widths = {name: layout.axes[dim_axes(layout.parameters[f"{name}.weight"].dims[0])[0]].size for name in layout.norms}
    return sum(1 + width * (1 + (f"{name}.bias" in layout.parameters)) for name, width in widths.items())


def norm_part(statistics: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The entries of a set of statistics that are about norms."""
    return {key: value for key, value in (statistics or {}).items() if key.startswith((MEAN, SQUARE, POSITIONS))}


def norm_factors(plan: Plan, layout: Layout, statistics: Mapping[str, Tensor] | None) -> dict[str, tuple[float, float]]:
    """(scale, shift) by norm: gain -> scale * gain, bias -> bias + shift * gain; empty where the plan keeps the stream whole.

    E[(mu_S - mu) / sigma] is the mean of E[z] over S; E[sigma_S / sigma] is estimated by the root of the mean of E[z^2] over S
    less the square of the former (an upper estimate, by Jensen's inequality).
    """
    factors: dict[str, tuple[float, float]] = {}
    for name in layout.norms:
        (axis,) = dim_axes(layout.parameters[f"{name}.weight"].dims[0])
        if not statistics or axis not in plan or f"{SQUARE}@{name}" not in statistics:
            continue
        kept, positions = torch.from_numpy(plan[axis].copy()), statistics[f"{POSITIONS}@{name}"]
        mean = statistics.get(f"{MEAN}@{name}")
        shift = torch.zeros(()) if mean is None else (mean[kept] / positions).mean()
        scale = ((statistics[f"{SQUARE}@{name}"][kept] / positions).mean() - shift.square()).clamp(min=0).sqrt()
        factors[name] = (float(scale), float(shift))
    return factors


def correct_norms(tensors: Mapping[str, Tensor], factors: Mapping[str, tuple[float, float]]) -> dict[str, Tensor]:
    """A subnetwork's tensors with gain and bias of its norms corrected."""
    corrected = dict(tensors)
    for name, (scale, shift) in factors.items():
        gain, bias = f"{name}.weight", f"{name}.bias"
        if gain in tensors:
            corrected[gain] = tensors[gain] * scale
        if gain in tensors and bias in tensors:
            corrected[bias] = tensors[bias] + tensors[gain] * shift
    return corrected


def undo_correction(changes: Mapping[str, Tensor], factors: Mapping[str, tuple[float, float]]) -> None:
    """Turns changes of corrected gains and biases into those of the full model's norms, in place.

    Who is given g' = s g and b' = b + t g, and returns them changed by dg' and db', has trained g + dg'/s and b + db' - t dg'/s: cut and
    corrected again, they are what was returned. Linear, so that a weighted sum of changes may be given. A norm whose scale is 0 has no
    inverse: its changes stay.
    """
    for name, (scale, shift) in factors.items():
        gain, bias = changes.get(f"{name}.weight"), changes.get(f"{name}.bias")
        if gain is None or not scale:
            continue
        gain.div_(scale)
        if bias is not None:
            bias.sub_(gain, alpha=shift)


def relative_factors(
    inner: Mapping[str, tuple[float, float]], outer: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The factors that take a subnetwork's own corrected norms to those of a smaller one inside it."""
    relative = {}
    for name, (scale, shift) in inner.items():
        own_scale, own_shift = outer.get(name, (1.0, 0.0))
        relative[name] = (scale / own_scale, (shift - own_shift) / own_scale) if own_scale else (1.0, 0.0)
    return relative
