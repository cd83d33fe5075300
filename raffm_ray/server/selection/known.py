"""What a selection may look at: the clients that can be chosen, and what is known of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raffm_ray.server.selection.records import Clients, Records, Values
from raffm_ray.settings.clients import SelectionSettings


@dataclass(frozen=True)
class Known:
    """`able`: [able], clients with data that are awake and free, ascending; `examples`: [clients]; `device_types`: [clients], positions in
    `names`, which are those of the fleet, weakest first; `owners`: [clients], who has data; `records`: None where the row keeps none.

    `expect`: tells `type_seconds`.
    """

    settings: SelectionSettings
    round: int
    able: Clients
    examples: Clients
    device_types: NDArray[np.int32]
    names: tuple[str, ...]
    owners: NDArray[np.bool_]
    expect: Callable[[], Values]
    records: Records | None = None

    @cached_property
    def type_seconds(self) -> Values:
        """[device types]: the simulated seconds that a round is expected to take a client with a mean number of examples; infinity for a
        type that has no client with data, or trains nothing. Computed where it is asked for."""
        return self.expect()

    @property
    def remembered(self) -> Records:
        """The records of a row that keeps them. Raises ValueError in another."""
        if self.records is None:
            raise ValueError("no records are kept: the row needs records=True")
        return self.records
