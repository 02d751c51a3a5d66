"""What the training stages share: a student under losses, over a job."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import sha256_file
from stages.distillation.capture import Needs, View, read
from stages.distillation.dropout import replace_dropout
from stages.distillation.losses.attention import AttentionScores
from stages.distillation.losses.base import Loss, LossTerm, Pair
from stages.distillation.losses.hidden import HiddenStates
from stages.distillation.models import load_classifier
from stages.distillation.teachers import FrozenTeacher, class_order
from stages.evaluation.predict import predict
from stages.evaluation.scores import score
from stages.tasks.batches import Batch, TokenRows, batches_by_length, label_index, normalizers
from stages.tasks.task import Task
from stages.training.job import Job
from stages.training.options import Distilling
from stages.training.stage import Stage, is_first_rank, wait_for
from stages.training.teacher_cache import TeacherCache

TEACHER_LOGITS_FILE = "teacher_logits.npy"


class Distillation(nn.Module):
    """A student and its losses: what a job trains. The losses' projections are left behind after."""

    def __init__(self, student: PreTrainedModel, losses: Sequence[Loss]):
        super().__init__()
        self.student = student
        replace_dropout(student)
        self.losses = nn.ModuleList(losses)
        self.needs = Needs()
        for loss in losses:
            self.needs |= loss.student_needs

    @property
    def teacher_needs(self) -> Needs:
        """What the losses read of the teacher."""
        needs = Needs()
        for loss in self.losses:
            needs |= loss.teacher_needs
        return needs

    @property
    def set_progress(self) -> Callable[[float], None] | None:
        """What the job tells the share of the steps that are done; None where no schedule changes the loss."""
        return self._at if any(loss.is_scheduled for loss in self.losses) else None

    def _at(self, progress: float) -> None:
        for loss in self.losses:
            loss.progress = progress

    def forward(self, batch: Batch, targets: View | None) -> dict[str, LossTerm]:
        view = read(self.student, batch, self.needs)
        terms = {}
        for loss in self.losses:
            terms |= loss(view, targets, batch)
        return terms


def layer_losses(options: Distilling, pair: Pair) -> list[Loss]:
    """Embedding, hidden-state and attention-score losses under the layer map (paper equations 7, 8 and 9)."""
    losses: list[Loss] = []
    if options.hidden_weight:
        losses.append(
            HiddenStates(pair, options.layer_map, options.hidden_weight, projection=options.projection)
        )
    if options.attention_weight:
        losses.append(AttentionScores(pair, options.layer_map, options.attention_weight))
    if not losses:
        raise UserError("hidden_weight and attention_weight are both 0: there is nothing to learn")
    return losses


def teacher_views(
    stage: Stage, teacher: FrozenTeacher, rows: dict[str, TokenRows]
) -> dict[str, Callable[[Batch], View]]:
    """For each of the named rows what gives the teacher's views: the disk where that pays and fits, else the model."""
    live = dict.fromkeys(rows, teacher)
    if stage.training.epochs < 2 or not stage.job.cache_gb:
        return live
    caches = {name: TeacherCache(stage, name, of, teacher) for name, of in rows.items()}
    size = sum(cache.bytes for cache in caches.values()) / 1e9
    if size > stage.job.cache_gb:
        stage.log(
            f"the teacher runs in every step: its layers would take {size:,.1f} GB of disk, more than "
            f"job.cache_gb={stage.job.cache_gb:g}"
        )
        return live
    stage.log(f"the teacher runs once over all rows; its layers take {size:,.2f} GB of disk meanwhile")
    return {name: cache.fill() for name, cache in caches.items()}


def teacher_answers(stage: Stage, task: Task, rows: TokenRows) -> np.ndarray:
    """(N, C) logits of the teacher, of all answers to the rows: asked once, and kept beside the rows in the cache that runs share."""
    kept = Path(rows.tokens.filename).parent
    teacher = sha256_file(stage.artifact_dir("teacher") / store.MANIFEST)
    kept = kept.with_name(f"{kept.name}-answers-{teacher[:12]}-{stage.job.precision}")
    if is_first_rank() and not store.is_whole(kept):
        store.remove(kept)
        table_NC = ask_teacher(stage, task, rows, np.arange(len(rows)))
        with store.sealed(kept) as directory:
            np.save(directory / TEACHER_LOGITS_FILE, table_NC)
    wait_for([kept / store.MANIFEST])
    return np.load(kept / TEACHER_LOGITS_FILE)


def ask_teacher(stage: Stage, task: Task, rows: TokenRows, of: np.ndarray) -> np.ndarray:
    """(N, C) logits of the teacher, of all answers to the rows; those to the rows `of` are filled in."""
    stage.log(f"one teacher pass over {len(of):,} rows without recorded logits")
    teacher = task_teacher(stage, task, Needs(logits=True))
    table_NC = np.empty((rows.targets.sum(), len(task.labels or ("score",))), np.float32)
    for batch in batches_by_length(rows, of=of):
        logits = teacher(batch.to(stage.device)).logits_BC.float().cpu()
        table_NC[label_index(rows, batch)[batch.label_mask].numpy()] = logits[batch.label_mask]
    return table_NC


def answers_as_targets(
    table_NC: np.ndarray, rows: TokenRows, device: torch.device
) -> Callable[[Batch], View]:
    """Views that show the teacher's logits of the rows' answers, and nothing else."""
    table = torch.from_numpy(table_NC).to(device)
    return lambda batch: View(mask_BL=batch.attention_mask, logits_BC=table[label_index(rows, batch)])


def task_teacher(stage: Stage, task: Task, needs: Needs) -> FrozenTeacher:
    """The tuned teacher, its logits in the task's class order."""
    source = stage.model("teacher")
    teacher = load_classifier(source, task.labels, own_labels=True)
    order = class_order(teacher.config, task.labels, [])
    return FrozenTeacher(teacher, needs, stage.device, stage.precision, order)


def task_score(stage: Stage, model: Distillation, rows: TokenRows, task: Task) -> Callable[[], float]:
    """The student's selection metric on dev."""
    return lambda: score(task, "dev", predict(model.student, rows, stage.device, stage.precision))[
        task.selection
    ]


def distillation_score(
    stage: Stage, model: Distillation, teacher: Callable[[Batch], View], rows: TokenRows
) -> Callable[[], float]:
    """The negative distillation loss on dev rows: the stage's selection metric before there are predictions."""
    total = normalizers(rows.lengths, rows.targets, rows.labelled)

    def measure() -> float:
        loss = 0.0
        with torch.no_grad():
            for batch in batches_by_length(rows):
                batch = batch.to(stage.device)
                precision = stage.precision
                with torch.autocast(stage.device.type, precision, enabled=precision != torch.float32):
                    terms = model(batch, teacher(batch))
                loss += sum(term.weight * term.sum.item() / total[term.normalizer] for term in terms.values())
        return -loss

    return measure


class TeacherLogits:
    """The teacher's logits by row, recorded while it runs anyway, so that a later stage needs no teacher.

    Saved with each checkpoint; rows not seen yet are NaN.
    """

    def __init__(self, rows: int, classes: int, device: torch.device):
        self.table_NC = torch.full((rows, classes), torch.nan, device=device)
        self.bytes = self.table_NC.nbytes

    def note(self, batch: Batch, view: View) -> None:
        """Keep the logits of a batch's rows that count and were not seen before."""
        known_BC = self.table_NC[batch.rows]
        new_B1 = known_BC.isnan().any(dim=1, keepdim=True) & (batch.weight[:, None] > 0)
        self.table_NC[batch.rows] = torch.where(new_B1, view.logits_BC.float(), known_BC)

    def gather(self) -> None:
        """Put together what all ranks have seen; the first pass over a row has one rank see it."""
        table_NC = self.table_NC.nan_to_num(-torch.inf)
        dist.all_reduce(table_NC, dist.ReduceOp.MAX)
        self.table_NC = torch.where(table_NC == -torch.inf, torch.nan, table_NC)

    def save(self, directory: Path) -> None:
        """Write the gathered table, on rank 0."""
        self.gather()
        if dist.get_rank() == 0:
            self.write(directory)

    def write(self, directory: Path) -> None:
        """Write the table as it is."""
        np.save(directory / TEACHER_LOGITS_FILE, self.table_NC.cpu().numpy())

    def load(self, directory: Path) -> None:
        """Go on from a checkpoint."""
        self.table_NC.copy_(torch.from_numpy(np.load(directory / TEACHER_LOGITS_FILE)))


def save_student(job: Job, tokenizer: PreTrainedTokenizerBase, extra: Callable[[Path], None] | None = None):
    """A writer of the stage's artefact: the student in Hugging Face form, with its tokenizer."""
    weights, student = job.student_weights(), job.model.student

    def write(directory: Path) -> None:
        student.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)
        if extra:
            extra(directory)

    return write
