"""TinyBERT's two distillation steps as the paper (arXiv 1909.10351) writes them and the published code computes
them: fp32, rows padded to the task's length, the raw attention scores and hidden states of every layer kept, the teacher
run in every step. Plain PyTorch on stock `transformers` models; nothing of this project is used.

As published, the teacher runs with its dropout on, in the general step with a graph that nothing uses, and GELU and
LayerNorm are written out operation by operation; `mended` runs the teacher as the paper would have it, and
PyTorch's own GELU and LayerNorm.

Axes in names: B rows, H heads, L positions, W width of the hidden states, C classes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForSequenceClassification, BertModel

MASKED = -10000.0


def written_gelu(x: Tensor) -> Tensor:
    """GELU in one operation after another, as the published code computes it."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def written_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in one operation after another, as the published code computes it where apex is missing."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return norm.weight * ((x - mean) / torch.sqrt(variance + norm.eps)) + norm.bias


PUBLISHED = {"gelu": written_gelu, "norm": written_norm}
STOCK: dict[str, Any] = {"gelu": functional.gelu, "norm": lambda norm, x: norm(x)}


def run_bert(bert: BertModel, ids_BL: Tensor, mask_BL: Tensor, types_BL: Tensor, gelu, norm):
    """A forward pass of a stock BERT, layer by layer, that keeps what TinyBERT learns from.

    Args:
        gelu, norm: how they are computed, `PUBLISHED` or `STOCK`; the embedding's norm is always the stock one.

    Returns:
        The raw attention scores (B, H, L, L) of every layer, with -10000 at padded keys, and the hidden states
        (B, L, W) of the embedding and of every layer.
    """
    padding_B11L = (1.0 - mask_BL[:, None, None, :].float()) * MASKED
    scores, hidden = [], [bert.embeddings(ids_BL, token_type_ids=types_BL)]
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        q, k, v = (
            linear(hidden[-1]).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for linear in (attention.query, attention.key, attention.value)
        )
        scores.append(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + padding_B11L)
        weights = attention.dropout(scores[-1].softmax(-1))
        mixed, out = layer.attention.output, layer.output
        read = mixed.dropout(mixed.dense((weights @ v).transpose(1, 2).flatten(2)))
        read = norm(mixed.LayerNorm, read + hidden[-1])
        wide = gelu(layer.intermediate.dense(read))
        hidden.append(norm(out.LayerNorm, out.dropout(out.dense(wide)) + read))
    return scores, hidden


def run_classifier(model: BertForSequenceClassification, *batch: Tensor, **functions):
    """Scores and hidden states as `run_bert`, and the logits (B, C)."""
    scores, hidden = run_bert(model.bert, *batch, **functions)
    return scores, hidden, model.classifier(model.dropout(model.bert.pooler(hidden[-1])))


class Reference:
    """A student in training under a teacher.

    Args:
        teacher, student: classifiers; the student has a divisor of the teacher's layers.
        predicts: learn the teacher's answers (equation 10); else its layers (equations 7 to 9).
        general: the teacher's pass builds a graph, as in the published general step.
        mended: the teacher runs without dropout and without a graph, both models with PyTorch's own functions.
        learning_rate: of AdamW.
    """

    def __init__(
        self,
        teacher: BertForSequenceClassification,
        student: BertForSequenceClassification,
        predicts: bool = False,
        general: bool = False,
        mended: bool = False,
        learning_rate: float = 5e-5,
    ):
        self.teacher, self.student, self.predicts = teacher.train(not mended), student.train(), predicts
        self.graph = general and not mended
        self.functions = STOCK if mended else PUBLISHED
        layers = student.config.num_hidden_layers
        self.every = teacher.config.num_hidden_layers // layers
        width, to = student.config.hidden_size, teacher.config.hidden_size
        self.projections = nn.ModuleList(nn.Linear(width, to) for _ in range(layers + 1))
        self.projections.to(student.device)
        self.parameters = [*student.parameters(), *self.projections.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.01)

    def loss(self, *batch: Tensor) -> Tensor:
        """Of a batch (ids, mask, token types), each (B, L)."""
        with torch.set_grad_enabled(self.graph):
            scores, hidden, logits = run_classifier(self.teacher, *batch, **self.functions)
        theirs = [x.detach() for x in scores], [x.detach() for x in hidden], logits.detach()
        mine = run_classifier(self.student, *batch, **self.functions)
        if self.predicts:
            return self.prediction_loss(mine[2], theirs[2])
        return self.attention_loss(mine[0], theirs[0]) + self.hidden_loss(mine[1], theirs[1])

    def attention_loss(self, mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Equation 7: mean over all pairs of positions, summed over layers; what was masked becomes 0."""

        def unmasked(scores: Tensor) -> Tensor:
            return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)

        return sum(
            functional.mse_loss(unmasked(s), unmasked(t))
            for s, t in zip(mine, theirs[self.every - 1 :: self.every], strict=True)
        )

    def hidden_loss(self, mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Equations 8 and 9: mean over all positions, padded ones too, summed over layers."""
        return sum(
            functional.mse_loss(projection(s), t)
            for projection, s, t in zip(self.projections, mine, theirs[:: self.every], strict=True)
        )

    @staticmethod
    def prediction_loss(mine_BC: Tensor, theirs_BC: Tensor) -> Tensor:
        """Equation 10 at temperature 1, as published: mean over rows and classes."""
        return (-theirs_BC.softmax(-1) * mine_BC.log_softmax(-1)).mean()

    def step(self, *batch: Tensor) -> float:
        """One step of the optimiser; returns the loss."""
        loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class GPUReference(Reference):
    """What a good engineer writes for a GPU: SDPA, bf16 autocast for the student, a bf16 teacher, a fused optimiser.

    Queries and keys are taken by hooks; only the scores of the mapped layers are computed, and padded positions do not
    count. Rows are padded to the longest of their batch.
    """

    def __init__(self, teacher, student, predicts: bool = False, learning_rate: float = 5e-5):
        super().__init__(teacher, student, predicts, mended=True)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=0.01, fused=student.device.type == "cuda"
        )
        self.kept: dict[nn.Module, Tensor] = {}
        for model, every in ((teacher, self.every), (student, 1)):
            for layer in model.bert.encoder.layer[every - 1 :: every]:
                for linear in (layer.attention.self.query, layer.attention.self.key):
                    linear.register_forward_hook(lambda module, _, output: self.kept.update({module: output}))

    def loss(self, ids_BL: Tensor, mask_BL: Tensor, types_BL: Tensor) -> Tensor:
        length = int(mask_BL.sum(1).max())
        ids_BL, mask_BL, types_BL = (x[:, :length] for x in (ids_BL, mask_BL, types_BL))
        given = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": types_BL}
        with torch.no_grad():
            theirs = self.teacher(**given, output_hidden_states=not self.predicts)
        with torch.autocast(ids_BL.device.type, torch.bfloat16):
            mine = self.student(**given, output_hidden_states=not self.predicts)
            if self.predicts:
                return self.prediction_loss(mine.logits.float(), theirs.logits.float())
            hidden = [
                projection(x) for projection, x in zip(self.projections, mine.hidden_states, strict=True)
            ]
        real_BL = mask_BL.float()
        loss = sum(
            ((s - t.float()).square().mean(-1) * real_BL).sum() / real_BL.sum()
            for s, t in zip(hidden, theirs.hidden_states[:: self.every], strict=True)
        )
        pairs_B1LL = real_BL[:, None, :, None] * real_BL[:, None, None, :]
        scores = zip(self._scores(self.student, 1), self._scores(self.teacher, self.every), strict=True)
        for s_BHLL, t_BHLL in scores:
            loss = loss + ((s_BHLL - t_BHLL).square() * pairs_B1LL).mean(1).sum() / pairs_B1LL.sum()
        return loss

    def _scores(self, model: BertForSequenceClassification, every: int) -> list[Tensor]:
        heads = model.config.num_attention_heads
        found = []
        for layer in model.bert.encoder.layer[every - 1 :: every]:
            attention = layer.attention.self
            q, k = (
                self.kept[linear].unflatten(-1, (heads, -1)).transpose(1, 2)
                for linear in (attention.query, attention.key)
            )
            found.append((q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1]))
        return found

    def step(self, *batch: Tensor) -> None:
        """One step of the optimiser; the loss is not read, which would be a wait."""
        loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
