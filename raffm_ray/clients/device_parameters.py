"""The parameters that a worker computes with: arrays of shared memory, and their copies on a GPU."""

import weakref
from dataclasses import dataclass, field

from torch import Tensor

from raffm_ray.axes.flat_parameters import NOTHING, Flat, as_tensor, is_same
from raffm_ray.models.architecture import Architecture
from raffm_ray.models.freezing import from_array, named_parameters


@dataclass
class DeviceParameters:
    """Trained parameters, which every call brings, beside frozen ones, which stay. On a GPU the last of both are kept until `forget`."""

    frozen: Flat = field(default_factory=lambda: NOTHING)
    copied: dict[bool, tuple["weakref.ref[Flat]", Tensor]] = field(default_factory=dict)

    def hold(self, frozen: Flat) -> bool:
        """Takes the frozen parameters of the calls that follow; returns whether they are others than before."""
        if is_same(self.frozen, frozen):
            return False
        self.frozen = frozen
        return True

    def _placed(self, flat: Flat, device: str, frozen: bool) -> Tensor:
        values = as_tensor(flat)  # modules get copies out of it
        if device == "cpu":
            return values
        if frozen not in self.copied or self.copied[frozen][0]() is not flat:
            self.copied.pop(frozen, None)
            self.copied[frozen] = (weakref.ref(flat), values.to(device))
        return self.copied[frozen][1]

    def named(
        self, flat: Flat, architecture: Architecture, device: str, size_specific: tuple[str, ...], copy: int
    ) -> dict[str, Tensor]:
        """All parameters by name, in the model's order, on a device, frozen ones in the type that they are kept in. `size_specific`, `copy`: as of `named_parameters`."""
        trained, frozen = self._placed(flat, device, frozen=False), self._placed(self.frozen, device, frozen=True)
        return named_parameters(trained, from_array(frozen), architecture, size_specific, copy)

    def behind(self, flat: Flat, start: int, device: str) -> Tensor:
        """What is behind the trained parameters and their copies, from number `start` on, on a device."""
        return self._placed(flat, device, frozen=False)[start:]

    def forget(self) -> None:
        """Frees the copies on a GPU."""
        self.copied.clear()
