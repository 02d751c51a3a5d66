"""A classifier as ONNX: written, made int8, and run by onnxruntime in the way of the model it came from."""

import logging
import warnings
from pathlib import Path

import onnx  # noqa: F401 (torch writes the file with it)
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from stages.distillation.models import classifies
from stages.distillation.outputs import inputs_of


class OnnxClassifier:
    """An ONNX file in onnxruntime on the CPU, with as many threads as torch has.

    It is called with the tensors that the model it came from takes, and answers with its logits.
    """

    def __init__(self, path: Path, config: PretrainedConfig):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.config = config
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """The logits of a batch."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {name: value.numpy() for name, value in inputs.items() if value is not None}
        (logits,) = self.session.run(None, given)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def write_onnx(model: PreTrainedModel, fp32: Path, int8: Path) -> None:
    """Write a model in fp32, and with weights in int8 (activations are quantized on the way), of any batch and length.

    A scale for each output, and weights of 7 bits: processors without VNNI add products of 8 bits up in 16, which overflow.

    The legacy exporter needs no package but onnx, and takes a tenth of the time of the newer one.
    """
    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    inputs = inputs_of(model, example)
    both = {0: "batch_size", 1: "sequence_length"}
    axes = {name: both for name in inputs} | {
        "logits": both if classifies(model.config) else {0: "batch_size"}
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing; the logits are compared afterwards
        torch.onnx.export(
            model.eval(), (), fp32, kwargs=inputs, input_names=list(inputs), output_names=["logits"],
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
    logging.disable(logging.WARNING)  # it recommends another pass before; the answers are compared afterwards
    try:
        quantize_dynamic(fp32, int8, per_channel=True, reduce_range=True)
    finally:
        logging.disable(logging.NOTSET)
