"""Write a classifier as ONNX, and run it in onnxruntime with the interface of the torch model."""

import inspect
import warnings
from collections.abc import Collection
from pathlib import Path

import onnx  # noqa: F401 (torch writes the file with it)
import onnxruntime
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from stages.distillation.outputs import inputs_of
from stages.distillation.task_heads import head_of


class OnnxClassifier:
    """An ONNX file in onnxruntime on the CPU, with as many threads as torch.

    It is called with the same tensors as the torch model, and returns an object with `logits`, or with `start_logits` and
    `end_logits`. The one output of a ranker is its second logit, as `load_classifier` has it.
    """

    def __init__(self, path: Path, config: PretrainedConfig):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.config, self.ranks = config, getattr(config, "ranking", False)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        # The exporter drops what no layer reads.
        self.read = {given.name for given in self.session.get_inputs()}

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ModelOutput:
        """The logits of a batch."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {name: x.numpy() for name, x in inputs.items() if x is not None and name in self.read}
        names = [output.name for output in self.session.get_outputs()]
        found = {
            name: torch.from_numpy(x) for name, x in zip(names, self.session.run(names, given), strict=True)
        }
        if self.ranks and found["logits"].shape[1] == 1:
            found["logits"] = torch.nn.functional.pad(found["logits"], (1, 0))
        return ModelOutput(found)


def write_onnx(model: PreTrainedModel, names: Collection[str], path: Path) -> None:
    """Write a model as ONNX in fp32, for any batch size and length.

    Its inputs are the tokenizer's outputs in `names` that the model takes.

    Torch's legacy exporter is used. The newer one (dynamo=True) gives the same logits, but takes 10 s instead of 1 s for a
    tiny encoder, writes 0.4 MB more, and needs onnxscript.
    """
    ids, mask = torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    example = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    order = inspect.signature(model.forward).parameters  # in which torch's exporter names them
    inputs = inputs_of(model, {name: example[name] for name in order if name in names})
    both = {0: "batch_size", 1: "sequence_length"}
    outputs = {
        "SequenceClassification": {"logits": {0: "batch_size"}},
        "TokenClassification": {"logits": both},
        "QuestionAnswering": {"start_logits": both, "end_logits": both},
        "SentenceSimilarity": {name: {0: "batch_size"} for name in ("logits", "first_BW", "second_BW")},
    }[head_of(model.config) or "SequenceClassification"]
    axes = {name: both for name in inputs} | outputs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tracing; the logits are compared afterwards
        torch.onnx.export(
            model.eval(), (), path, kwargs=inputs, input_names=list(inputs), output_names=list(outputs),
            dynamic_axes=axes, dynamo=False,
        )  # fmt: skip
