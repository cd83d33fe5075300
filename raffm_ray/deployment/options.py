"""What can be asked of `raffm-ray deploy`. Imports nothing heavy: its help is shown at once."""

from dataclasses import dataclass, fields
from typing import Annotated

from cyclopts import Parameter

from raffm_ray.basics.flags import whole

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Out = Annotated[str | None, Parameter(metavar="DIR", help="folder that is written; default: a new one in runs/")]
Sizes = Annotated[
    str | None, Parameter(metavar="LIST", help="several models, by fractions of the parameters in layers, such as 0.75,0.5")
]


@dataclass(frozen=True)
class DeployOptions:
    """How small a model is to be, and in which forms it is written. What was not given is empty, None or 0."""

    budget: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="KIND=VALUE",
            negative=(),
            show_default=False,
            help="limit of params, layer_params, adapter_params, bytes, macs, inference_bytes, training_flops or memory_bytes (up to 1: a fraction of the "
            "full model's), or of latency_ms (of an answer on this machine, measured); several times: all of them hold",
        ),
    ] = ()
    device: Annotated[
        str | None, Parameter(metavar="NAME", help="device type of the run, or a profile whose memory is the limit")
    ] = None
    client: Annotated[
        int | None,
        Parameter(
            metavar="N",
            converter=whole(least=0),
            help="the model of one client of a run, with the parameters that it keeps for itself",
        ),
    ] = None
    sizes: Sizes = None
    elastic: Annotated[Switch, Parameter(help="also one file of which every beginning is a subnetwork")] = False
    adapter: Annotated[Switch, Parameter(help="also the adapters alone, in a folder that the library peft opens")] = False
    onnx: Annotated[Switch, Parameter(help="also ONNX in 32 bit floats (pip install 'raffm-ray[onnx]')")] = False
    int8: Annotated[Switch, Parameter(help="also ONNX in 8 bit integers")] = False
    torch_export: Annotated[Switch, Parameter(help="also PyTorch's exported program")] = False
    tune: Annotated[
        int | None,
        Parameter(metavar="STEPS", converter=whole(), help="further training on the labels of the public examples"),
    ] = None
    distill: Annotated[
        int | None,
        Parameter(
            metavar="STEPS", converter=whole(), help="further training on what the full model answers to the public examples"
        ),
    ] = None
    examples: Annotated[
        int, Parameter(metavar="N", converter=whole(), help="examples that are answered at once where times are measured")
    ] = 1
    out: Out = None


FLAGS = tuple(f"--{field.name.replace('_', '-')}" for field in fields(DeployOptions))
