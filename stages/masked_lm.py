"""The masked language model of augmentation and recipes: the given one, or the encoder with a newly trained head.

A model that has its masked-LM head is used as it is. An encoder without one is trained on the unlabelled corpus by
BERT's own loss (arXiv 1810.04805, section 3.1), its vocabulary read through the tied input embeddings. Every chosen
token becomes [MASK], because predictions are only ever wanted at masks. The accuracy on held-out documents is logged.
"""

from dataclasses import replace

import torch

from checkpoints.errors import UserError
from stages.distillation.compatibility import check_length
from stages.distillation.distillation import Distillation
from stages.distillation.losses import MaskedWords
from stages.distillation.models import load_config, load_masked_lm, load_tokenizer
from stages.evaluation.masked_accuracy import held_out_accuracy
from stages.tasks.masking import Masking
from stages.teaching.student import save_student
from stages.training.cached_rows import corpus_rows
from stages.training.job import Job
from stages.training.options import Pretraining
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Fit the head where there is none, measure, and publish the whole masked language model.

    Raises:
        UserError: there is neither a head nor a corpus to fit one.
    """
    source, options = stage.model("model"), Pretraining(**stage.options["training"])
    tokenizer = load_tokenizer(source)
    masking = Masking(tokenizer, options.mlm_probability, stage.seed)
    check_length(load_config(source), options.max_length)
    torch.manual_seed(stage.seed)
    model, has_head = load_masked_lm(source)
    if "corpus" not in stage.inputs and not has_head:
        raise UserError(
            f"{source.name} has no masked-LM head, and there is no text to fit one; give text, or a masked language model",
            argument="corpus",
        )
    scores: dict[str, float] = {}
    if not has_head:
        rows = corpus_rows(stage, tokenizer, options.max_length, options.tokens, held_out=False)
        rows = replace(rows, masking=masking)
        job = Job(stage, Distillation(model, [MaskedWords()]), rows, batch_transform=masking)
        scores["steps"] = job.run().step
    if "corpus" in stage.inputs:
        scores |= held_out_accuracy(stage, model, tokenizer, "its own head" if has_head else "head fitted")

    def write_given(directory) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    stage.publish(write_given if has_head else save_student(job, tokenizer), scores)
