"""Deployed models in other forms: ONNX in 32 bit floats and in 8 bit integers, and torch's own exported program.

ONNX needs `pip install 'raffm-ray[onnx]'`.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raffm_ray.basics.errors import UserError, in_short
from raffm_ray.deployment.inference import Answer
from raffm_ray.models.attention import IMPLEMENTATIONS

OUTPUTS = {"question_answering": ("start_logits", "end_logits")}
"""What a head puts out, where it is not `logits`."""
WORDS = ("input_ids", "attention_mask", "token_type_ids")
"""How names of inputs end that have an entry a token."""
EAGER = {IMPLEMENTATIONS["sdpa"]: IMPLEMENTATIONS["eager"]}
"""What is exported computes attention by plain products: what fused kernels ask for, such as heads filled up to one size, would be in the file."""
TOLERANCE = 1e-4
"""Between torch and ONNX, relative to the largest answer or absolute, whichever is larger."""


class _Plain(nn.Module):
    """A model whose inputs come in a row and whose outputs are tensors in a row."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(getattr(output, name) for name in self.outputs)


def check_onnx() -> None:
    """Raises UserError where what exports to ONNX is not installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise UserError(f"--onnx and --int8 need {name}: pip install 'raffm-ray[onnx]'")


def outputs_of(head: str) -> tuple[str, ...]:
    """The names of a head's outputs."""
    return OUTPUTS.get(head, ("logits",))


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _program(model: nn.Module, inputs: Mapping[str, Tensor], head: str) -> tuple[_Plain, tuple[Tensor, ...], tuple[Any, ...]]:
    """What is exported, with inputs of at least two examples, and which of their sizes may be any."""
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "use_cache"):
            module.config.use_cache = False
    names = tuple(inputs)
    batch, sizes = torch.export.Dim.DYNAMIC, []
    for name in names:
        sizes.append({0: batch, 1: torch.export.Dim.DYNAMIC} if name.endswith(WORDS) else {0: batch})
    return _Plain(model, names, outputs_of(head)).eval(), tuple(inputs.values()), (tuple(sizes),)


def export_torch(model: nn.Module, inputs: Mapping[str, Tensor], head: str, path: Path) -> None:
    """Writes an exported program, any number of examples, texts of any length. Raises UserError where it cannot be made."""
    program, values, sizes = _program(model, inputs, head)
    try:
        with _quiet():
            torch.export.save(torch.export.export(program, values, dynamic_shapes=sizes), path)
    except Exception as error:  # whatever torch raises for what it cannot trace
        raise UserError(f"--torch-export: torch cannot export this model: {in_short(error)}") from None


def export_onnx(model: PreTrainedModel, inputs: Mapping[str, Tensor], head: str, path: Path) -> None:
    """Writes an ONNX file, any number of examples, texts of any length. Raises UserError where it cannot be made."""
    model.set_attn_implementation(EAGER.get(model.config._attn_implementation, "eager"))
    program, values, sizes = _program(model, inputs, head)
    try:
        with _quiet():
            torch.onnx.export(
                program,
                values,
                path,
                input_names=list(inputs),
                output_names=list(outputs_of(head)),
                dynamic_shapes=sizes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # whatever torch raises for what it cannot trace
        raise UserError(f"--onnx: torch cannot export this model: {in_short(error)}") from None
    _strip(path)


def _strip(path: Path) -> None:
    """Takes out of an ONNX file what says where in the code each node came from: more bytes than a small model's weights."""
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.save(model, path)


def quantize(source: Path, path: Path) -> None:
    """Writes an ONNX file whose weights are 8 bit integers, and whose activations are made so as they come (dynamic quantization)."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # shapes of what the quantizer replaces
    with _quiet():
        quantize_dynamic(model, path, weight_type=QuantType.QInt8)


def onnx_answer(path: Path, head: str) -> Answer:
    """Answers of an ONNX file by onnxruntime, on the CPU with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}

    def answer(inputs: Mapping[str, Tensor]) -> Any:
        values = session.run(None, {name: one.numpy() for name, one in inputs.items() if name in wanted})
        return SimpleNamespace(**{name: torch.from_numpy(one) for name, one in zip(outputs_of(head), values, strict=True)})

    return answer


def largest_difference(first: Answer, second: Answer, inputs: Mapping[str, Tensor], head: str) -> float:
    """Of two models' outputs, relative to the largest, or absolute where that is below 1."""
    pairs = [[getattr(one(inputs), name) for one in (first, second)] for name in outputs_of(head)]
    return max(float((one - other).abs().max() / max(1.0, float(one.abs().max()))) for one, other in pairs)
