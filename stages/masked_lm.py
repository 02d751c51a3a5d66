"""The masked language model that augmentation asks: a given one, or the encoder with a head fitted to it.

A model that has its masked-LM head is taken as it is. An encoder without one is trained on the unlabelled
corpus by BERT's own objective (arXiv 1810.04805, section 3.1; every chosen piece is masked, since only masks
are asked later), its vocabulary read through the tied input embeddings. Either way the accuracy on documents
held out from the corpus is said.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from data_aug.masked_lm import head_alone
from stages.distill import save_student
from stages.distillation.checks import check_length
from stages.distillation.models import load_config, load_masked_lm, load_tokenizer
from stages.distillation.objectives import Term
from stages.distillation.view import inputs_of
from stages.evaluate import batches_by_length
from stages.job import Job
from stages.rows import corpus_rows, has_held_out
from stages.stage import Stage
from stages.tasks.batches import Batch, TokenRows

HELD_OUT_TOKENS = 100_000


def run(stage: Stage) -> None:
    """Fit the head where there is none, measure, and publish the whole masked language model.

    Raises:
        UserError: there is neither a head nor a corpus to fit one.
    """
    source, options = stage.model("model"), stage.training
    tokenizer = load_tokenizer(source)
    if tokenizer.mask_token_id is None:
        raise UserError(f"{source.name}: its tokenizer has no mask token, so it is no masked language model")
    check_length(load_config(source), options.max_length, stage.name)
    torch.manual_seed(stage.seed)
    model, has_head = load_masked_lm(source)
    if "corpus" not in stage.inputs and not has_head:
        raise UserError(
            f"{source.name} has no masked-LM head, and there is no corpus to fit one: give corpus=FILES, "
            "augmentation.masked_lm=MODEL (one with a head), or augment=false"
        )
    scores = {}
    if has_head:
        model.eval().to(stage.device)
    else:
        model.train()
        rows = corpus_rows(stage, tokenizer, options.max_length, options.tokens, held_out=False)
        job = Job(stage, MaskedPieces(model, tokenizer, options.masked_share), rows)
        scores["steps"] = job.run().step
    if "corpus" in stage.inputs and has_held_out(stage):
        held_out = corpus_rows(stage, tokenizer, options.max_length, HELD_OUT_TOKENS, held_out=True)
        scores["accuracy"] = accuracy(stage, MaskedPieces(model, tokenizer, options.masked_share), held_out)
        stage.say(
            f"{scores['accuracy']:.1%} of the masked word pieces of held-out documents are guessed right "
            f"({'its own head' if has_head else 'head fitted'})"
        )

    def write_given(directory) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    stage.publish(write_given if has_head else save_student(job, tokenizer), scores)


class MaskedPieces(nn.Module):
    """A masked language model under its own objective: cross-entropy of the word pieces behind the masks.

    The vocabulary is read at the masks only. The loss is divided by the expected number of masks, which every
    rank knows: tokens x share.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, share: float):
        super().__init__()
        self.student, self.share = model, share
        self.mask = tokenizer.mask_token_id
        self.register_buffer("special", torch.tensor(tokenizer.all_special_ids), persistent=False)

    def forward(self, batch: Batch, targets: None) -> dict[str, Term]:
        logits_NV, pieces_N = self.guess(batch)
        loss = F.cross_entropy(logits_NV.float(), pieces_N, reduction="sum")
        return {"masked_lm": Term(loss / self.share, "tokens")}

    def guess(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mask a share of the batch's pieces: (N, V) logits at the masks and the (N,) pieces behind them."""
        ids_BL = batch.input_ids
        chosen_BL = torch.rand(ids_BL.shape, device=ids_BL.device) < self.share
        chosen_BL &= ~torch.isin(ids_BL, self.special) & (batch.attention_mask * batch.weight[:, None] > 0)
        inputs = inputs_of(self.student, batch) | {"input_ids": ids_BL.masked_fill(chosen_BL, self.mask)}
        states_NH = self.student.base_model(**inputs)[0][chosen_BL]
        return head_alone(self.student)(inputs_embeds=states_NH[None]).logits[0], ids_BL[chosen_BL]


def accuracy(stage: Stage, model: MaskedPieces, rows: TokenRows) -> float:
    """The share of masked pieces whose likeliest guess is right; the masks are the same in every call."""
    right = asked = 0
    model.to(stage.device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            logits_NV, pieces_N = model.guess(batch.to(stage.device))
            right += int((logits_NV.argmax(-1) == pieces_N).sum())
            asked += len(pieces_N)
    return right / max(asked, 1)
