"""Layer norms of a subnetwork whose residual stream is cut.

A norm over the kept channels S sees another mean and deviation than the full one did. With z = (x - mu) / sigma of the full
stream, the full norm's output on S is (x - mu_S) / sigma_S * (sigma_S / sigma) + (mu_S - mu) / sigma, so folding the expectations
of the two factors into gain and bias restores it on average. Both follow, for any S, from the per-channel mean and mean square of
z, which clients can report as sums.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from raffm_ray.axes import Layout, Plan

MEAN, SQUARE, POSITIONS = "norm_mean", "norm_square", "norm_positions"


def norm_statistics(model: nn.Module, layout: Layout, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums over examples and positions of z and z^2 for every norm, shape [residual], and the count of positions; float64."""
    totals: dict[str, Tensor] = {}

    def hook(name: str, eps: float) -> object:
        def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().double().flatten(0, -2)
            z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
            for key, value in (
                (MEAN, z.sum(0)),
                (SQUARE, z.square().sum(0)),
                (POSITIONS, torch.tensor(float(len(z)), dtype=torch.float64)),
            ):
                totals[f"{key}@{name}"] = totals.get(f"{key}@{name}", torch.zeros_like(value.cpu())) + value.cpu()

        return model.get_submodule(name).register_forward_pre_hook(measure)

    handles = [hook(name, float(getattr(model.get_submodule(name), "eps", 0.0))) for name in layout.norms]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(**{key: values for key, values in batch.items() if key != "labels"})
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
    return totals


def norm_part(statistics: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The entries of a set of statistics that are about norms."""
    return {key: value for key, value in (statistics or {}).items() if key.startswith((MEAN, SQUARE, POSITIONS))}


def correct_norms(
    tensors: Mapping[str, Tensor], plan: Plan, layout: Layout, statistics: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """The subnetwork's tensors with gain and bias of its norms corrected; unchanged where the plan keeps the residual whole.

    E[(mu_S - mu) / sigma] is the mean of E[z] over S; E[sigma_S / sigma] is estimated by the root of the mean of E[z^2] over S less
    the square of the former (an upper estimate, by Jensen's inequality).
    """
    corrected = dict(tensors)
    if not statistics or "residual" not in plan:
        return corrected
    kept = torch.from_numpy(plan["residual"].copy())
    for name in layout.norms:
        gain, bias = f"{name}.weight", f"{name}.bias"
        if gain not in tensors or f"{MEAN}@{name}" not in statistics:
            continue
        positions = statistics[f"{POSITIONS}@{name}"]
        shift = (statistics[f"{MEAN}@{name}"][kept] / positions).mean()
        scale = ((statistics[f"{SQUARE}@{name}"][kept] / positions).mean() - shift.square()).clamp(min=0).sqrt()
        corrected[gain] = tensors[gain] * float(scale)
        if bias in tensors:
            corrected[bias] = tensors[bias] + tensors[gain] * float(shift)
    return corrected
