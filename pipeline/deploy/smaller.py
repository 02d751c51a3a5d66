"""Smaller forms of an ONNX model: weights in 8 bits, activations quantized as they come or as calibrated, and fp16."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import PreTrainedModel

from pipeline.deploy.onnx_model import OnnxClassifier
from stages.distillation.outputs import inputs_of
from stages.evaluation.predict import predict
from stages.tasks.batches import batches_by_length
from stages.tasks.kinds import Kind
from stages.tasks.token_rows import TokenRows

CALIBRATION_ROWS, CALIBRATION_BATCH = 256, 16

LAYER = re.compile(r"\blayers?[./](\d+)[./]")
"""The number of a layer in the name of a node, as torch's exporter writes it."""

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Deciding:
    """What decides whether a smaller format is as good as the student in PyTorch.

    Attributes:
        kind: the kind of the task, with what was chosen on dev for the student, such as a threshold.
        rows: those used to calibrate ranges, and to decide which layers stay in fp32.
        groups: the groups of the rows (`Kind.groups`).
        limit: what a format may change (`changed`).
    """

    kind: Kind
    rows: TokenRows
    groups: list[int] | None
    limit: float


def write_smaller(
    name: str, source: Path, target: Path, student: PreTrainedModel, by: Deciding
) -> list[int] | None:
    """Write a smaller format of a student, with as few layers in fp32 as let it change no more than a limit.

    Args:
        name: the name of the format: int8, int8_static or fp16.
        source: the student as ONNX in fp32.
        student: in PyTorch.

    Returns:
        The layers in fp32, numbered from 1; None where the limit cannot be kept, and what is written does not keep it.
    """
    rows = by.rows
    expected, nodes = predict(student, rows, torch.device("cpu")), nodes_by_layer(source)
    some = np.linspace(0, len(rows) - 1, min(CALIBRATION_ROWS, len(rows)), dtype=int)
    read = OnnxClassifier(source, student.config).read
    batches = [
        {key: tensor.numpy() for key, tensor in inputs_of(student, batch.inputs).items() if key in read}
        for batch in batches_by_length(rows, CALIBRATION_BATCH, some)
    ]

    def measure(layers: Sequence[int]) -> float:
        in_fp32 = [node for layer in layers for node in nodes[layer]]
        if name == "int8_static":
            write_int8_static(source, target, batches, in_fp32)
        else:
            {"int8": write_int8, "fp16": write_fp16}[name](source, target, in_fp32)
        found: Any = OnnxClassifier(target, student.config)
        return changed(by.kind, predict(found, rows, torch.device("cpu")), expected, by.groups)

    left = fewest_in_fp32(measure, len(nodes), by.limit)
    return None if left is None else [layer + 1 for layer in left]


def changed(
    kind: Kind, logits: np.ndarray, expected: np.ndarray, groups: Sequence[int] | None = None
) -> float:
    """The fraction of answers that are not the expected ones; of scores their mean change in standard deviations."""
    same = kind.agreement(logits, expected, groups=groups).get("label_loyalty")
    if same is not None:
        return 1 - same
    deviation = kind.answers(expected).std()
    return float(kind.distances(logits, expected).mean() / max(deviation, 1e-12))


def write_int8(source: Path, target: Path, in_fp32: Collection[str] = ()) -> None:
    """Quantize a model's weights to int8, with a scale for each output. Activations are quantized while it runs.

    The weights have 7 bits, because processors without VNNI add up 8-bit products in 16 bits, which overflow.

    Args:
        in_fp32: names of the nodes that stay as they are.
    """
    with _quietly():
        quantize_dynamic(source, target, per_channel=True, reduce_range=True, nodes_to_exclude=list(in_fp32))


def write_int8_static(
    source: Path, target: Path, batches: Iterable[Inputs], in_fp32: Collection[str] = ()
) -> None:
    """As `write_int8`, but activations are quantized by the range that they have on some batches of inputs by name."""

    class Reader(CalibrationDataReader):
        left = iter(batches)

        def get_next(self) -> Inputs | None:
            return next(self.left, None)

    with _quietly():
        quantize_static(
            source, target, Reader(), op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, nodes_to_exclude=list(in_fp32),
            extra_options={"MatMulConstBOnly": True},  # products with weights alone, as in `write_int8`
        )  # fmt: skip


def write_fp16(source: Path, target: Path, in_fp32: Collection[str] = ()) -> None:
    """Halve a model's numbers to fp16, as `write_int8` makes them smaller. Inputs and outputs stay as they are."""
    with _quietly():
        model = convert_float_to_float16(onnx.load(source), keep_io_types=True, node_block_list=list(in_fp32))
        onnx.save(model, target)


def nodes_by_layer(path: Path) -> list[list[str]]:
    """The names of the nodes of each of a model's layers; empty where names do not tell layers."""
    found: dict[int, list[str]] = defaultdict(list)
    for node in onnx.load(path, load_external_data=False).graph.node:
        if match := LAYER.search(node.name):
            found[int(match[1])].append(node.name)
    return [found[layer] for layer in sorted(found)]


def fewest_in_fp32(measure: Callable[[Sequence[int]], float], layers: int, limit: float) -> list[int] | None:
    """The layers that must stay in fp32 so that a form keeps to a limit.

    If it does not with none, each layer is tried alone. Then layers are added, the one that helped most first.

    Args:
        measure: writes the form with these layers in fp32, numbered from 0, and tells what it changes.

    Returns:
        None where even all layers in fp32 do not keep to it; the form was then written with all of them.

    Example:
        >>> fewest_in_fp32(lambda kept: 0.03 if 1 in kept else 0.1, layers=3, limit=0.05)
        [1]
    """
    if measure([]) <= limit:
        return []
    alone = [measure([layer]) for layer in range(layers)]
    order = sorted(range(layers), key=lambda layer: alone[layer])
    for count in range(1, layers + 1):
        kept = sorted(order[:count])
        if measure(kept) <= limit:
            return kept
    return None


@contextmanager
def _quietly() -> Any:
    """Without recommendations of other pre-processing: what comes out is compared with fp32."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
