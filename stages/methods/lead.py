"""LEAD (Sun et al., arXiv 2212.05225): a dual encoder learns, layer by layer, how a teacher ranks the candidates of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from checkpoints.fingerprint import fingerprint
from stages.distillation.distillation import Distillation
from stages.distillation.losses import LOSSES
from stages.distillation.losses.passages import ScoreDistributions
from stages.distillation.models import load_classifier, load_config, load_tokenizer
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, choose, is_number, whole
from stages.distillation.students.dual_encoder import (
    BODIES,
    VECTORS,
    DualEncoderConfig,
    as_dual_encoder,
)
from stages.distillation.teachers import FrozenTeacher
from stages.distillation.word_vocabulary import SPECIAL, read_words, word_tokenizer
from stages.methods.base import Method, Targets
from stages.tasks.batches import Batch
from stages.tasks.candidates import Candidates
from stages.tasks.kinds import Ranking
from stages.tasks.kinds.ranking import of_the_first
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.teaching.live_teacher import task_teacher
from stages.teaching.mined_candidates import all_scores, mined_candidates, text_vectors
from stages.training.cached_rows import task_rows
from stages.training.options import StageToCheck, Training
from stages.training.rows import BatchTransform, Rows
from stages.training.stage import Stage
from stages.training.step import Step

OWN_LOSSES = ("candidate_scores", "in_batch_negatives", "score_distributions")
FIRST = 10
"""Candidates that the metrics over all of a split's look at."""


class Lead(Method):
    """The student becomes a dual encoder, and learns from an earlier model, its teacher; without one, from gold alone.

    It also measures how well the student retrieves the right candidates among all of test (or dev).

    Args:
        reads: the teacher: an earlier student of this method, with any number of layers, vectors and tokenizer; or a
            cross-encoder, which is "teacher" or an earlier student of the method plain; or none. The last of one or two
            names mines candidates, if `mined` is given.
        vectors, scale: the student's (`DualEncoderConfig`). One that begins as another dual encoder keeps that one's.
        negatives: wrong candidates drawn per right one in each epoch; the batch's other candidates are negatives, too.
        mined: 0: draw negatives from the question's own wrong candidates. Above 0: from that many hard negatives, the wrong
            candidates of train that a dual encoder ranks highest.
        words: 0: the student reads the teacher's tokens, or those of the student that it begins as. Above 0: it reads that
            many words, the most frequent of train.
        train_teacher: whether a dual encoder trains along with the student, as in the paper, and is then left behind. Its
            own losses are `in_batch_negatives: {of: teacher}` and `score_distributions: {reverse: true}`.
    """

    reads_apart = True

    def __init__(
        self,
        reads: Sequence[str],
        vectors: str = "cls",
        scale: float | None = None,
        negatives: int = 1,
        mined: int = 0,
        words: int = 0,
        train_teacher: bool = False,
    ):
        super().__init__()
        if scale is not None and (not is_number(scale) or scale <= 0):
            raise UserError(f"{scale!r} must be a number above 0; or leave it out", argument="scale")
        self.vectors, self.scale = choose(vectors, VECTORS, "vectors"), scale
        self.negatives, self.mined = whole(negatives, 1, 100, "negatives"), whole(mined, 0, 1000, "mined")
        self.words = whole(words, 0, 10**6, "words")
        if len(reads) > 1 + bool(mined):
            raise UserError(
                f"[{', '.join(reads)}] must name one teacher, or none; a second name only mines candidates (mined)",
                argument="reads",
            )
        self.teacher, self.miner = (f"reads {reads[i]}" if reads else "" for i in (0, -1))
        self.train_teacher = train_teacher
        self.by_cross_encoder = False
        self.along: PreTrainedModel | None = None

    def check_plan(self, plan: StageToCheck) -> None:
        """Refuse losses of other students, models of other methods, and what a frozen teacher or a cross-encoder lacks."""
        super().check_plan(plan)
        begins, vectors = _form(plan.begins_as)
        if begins not in ("assistants", "lead", "plain"):
            raise UserError(
                f"it begins as a student of the method {begins}, which does not become a dual encoder; take one of the method "
                "plain or lead",
                argument="student.init",
            )
        for line in plan.losses or ():
            name, settings = next(iter(line.items()), ("", {})) if isinstance(line, dict) else (line, {})
            if name in LOSSES and name not in OWN_LOSSES:
                raise UserError(
                    f"{name!r} does not work on a dual encoder; take one of {', '.join(OWN_LOSSES)}",
                    argument="losses",
                )
            if isinstance(settings, dict) and settings.get("of") == "teacher" and not self.train_teacher:
                raise UserError(
                    "a frozen teacher learns nothing of 'teacher'; give train_teacher: true, or leave the line out",
                    argument=f"losses.{name}.of",
                )
            pairs = settings.get("pairs", 1) if isinstance(settings, dict) else 1
            layers = (plan.layers_read.get(plan.reads[0]) or pairs) if plan.reads else pairs
            if name == "score_distributions" and isinstance(pairs, int) and pairs > layers:
                raise UserError(
                    f"{pairs} is more than the {layers} layers of the teacher {plan.reads[0]}; lower it",
                    argument=f"losses.{name}.pairs",
                )
        forms = [_form(plan.methods_read.get(name, "plain")) for name in plan.reads]
        methods = [method for method, _ in forms]
        for name, method in zip(plan.reads, methods, strict=True):
            if method not in ("lead", "plain"):
                raise UserError(
                    f"{name!r} has the method {method}; name the tuned teacher, or a student of the method lead or plain",
                    argument="reads",
                )
        if "tokens" in (vectors or self.vectors, *(of for _, of in forms[:1])) and plan.ranks > 1:
            raise UserError(f"late interaction (vectors: tokens) trains on 1 rank, not on {plan.ranks}; set it to 1",
                            argument="nproc")  # fmt: skip
        self.by_cross_encoder = methods[:1] == ["plain"]
        if self.train_teacher and self.by_cross_encoder:
            raise UserError(
                "true is for a teacher of the method lead, and this one is a cross-encoder; leave it out",
                argument="train_teacher",
            )
        if self.mined and methods[-1:] != ["lead"]:
            raise UserError(
                f"{self.mined} candidates are mined by a dual encoder, which reads each text once; name a student of the "
                "method lead as the last of reads",
                argument="mined",
            )

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse tasks other than rankings, students that cannot be dual encoders, and a teacher that is missing or shows too little."""
        if not isinstance(task.kind, Ranking) or task.kind.pooling:
            raise UserError(
                f"lead ranks candidates of questions without windows, and the task has {task.kind.name}; give a ranking",
                argument="method",
            )
        check_type(student, BODIES, "does not become a dual encoder")
        if spec != CaptureSpec() and not self.teacher:
            raise UserError("a loss reads the teacher, and there is none; name an earlier student",
                            argument="reads")  # fmt: skip
        if spec == CaptureSpec() and self.train_teacher:
            raise UserError("true needs a loss that reads the teacher, such as score_distributions; add it, or leave it out",
                            argument="train_teacher")  # fmt: skip
        if spec.named and self.by_cross_encoder:
            raise UserError("a cross-encoder has no vectors of layers to compare; take candidate_scores",
                            argument="losses")  # fmt: skip

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student of the recipe without its head, or the dual encoder that it begins as, with that one's tokenizer.

        With `words` it has a tokenizer of words in place of either's.
        """
        student, tokenizer = super().begin(stage, task)
        self.seed = stage.seed
        if "student" in stage.inputs:
            tokenizer = load_tokenizer(stage.model("student"))
        form: Any = student.config if isinstance(student.config, DualEncoderConfig) else self
        encoder: Any = student.base_model
        if self.words:
            split = task.splits["train"]
            former, tokenizer = tokenizer, word_tokenizer([*split.text_a, *(split.text_b or ())], self.words)
            read_words(encoder, former, tokenizer)
            known = len(tokenizer) - len(SPECIAL)
            stage.log(f"it reads {known:,} words of train in place of {len(former):,} tokens")
        if self.words or form is self:
            student = as_dual_encoder(encoder, form.vectors, form.scale)
            task.kind.configure(student.config)
        self.tokenizer, self.compared = tokenizer, student.config.vectors
        return student, tokenizer

    def rows(self, stage: Stage, task: Task, train: Any) -> tuple[Rows, BatchTransform]:
        """Right candidates, and wrong ones that are drawn; also read in the teacher's tokens if these differ."""
        split, name = task.splits["train"], "train"
        if self.mined:
            split = mined_candidates(stage, task, self.miner, self.mined)
            name = f"mined {fingerprint([split.text_a, split.text_b])}"
            task = replace(task, splits={name: split})
        tokenizers = {"student_": self.tokenizer}
        if self.teacher:
            tokenizers["teacher_"] = load_tokenizer(stage.model(self.teacher))
        readings: dict[str, Any] = {
            side: task_rows(stage, task, name, tokenizer, stage.training.max_length)
            for side, tokenizer in tokenizers.items()
        }
        if len({of.tokens.filename for of in readings.values()}) == 1:
            readings = {"": readings["student_"]}
        rows = Candidates(readings, split, stage.seed, self.negatives)
        teacher = load_config(stage.model(self.teacher)) if self.teacher else None
        if "tokens" in (self.compared, getattr(teacher, "vectors", "")):
            rows.max_ranks = 1  # the ranks' token vectors are padded to different lengths
        return rows, rows.draw

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """What the frozen teacher shows, live: the candidates are others in each epoch."""
        if spec == CaptureSpec():
            return {"train": None}
        if self.train_teacher:
            self.along = load_classifier(stage.model(self.teacher))
            return {"train": None}
        teacher = task_teacher(stage, task, spec, self.teacher)
        reads_apart = isinstance(teacher.model.config, DualEncoderConfig)
        return {"train": teacher if reads_apart else by_pairs(teacher)}

    def step(self, model: Distillation, training: Training) -> Step | None:
        """Layers are drawn from the stage's seed; a teacher that trains along does so under the student's optimiser."""
        for loss in model.losses:
            if isinstance(loss, ScoreDistributions):
                loss.seed = self.seed
        model.teacher = self.along
        return None

    def examine(self, stage: Stage, task: Task, model: Distillation, dev: TaskRows) -> None:
        """Fill `found`: how well each question of the reported split finds its right candidates among all of the split."""
        split = "test" if "test" in task.splits else "dev"
        rows, length = task.splits[split], stage.training.max_length
        assert rows.text_b is not None
        columns = [[*dict.fromkeys(of)] for of in (rows.text_a, rows.text_b)]
        vectors = [text_vectors(model.student.eval(), self.tokenizer, of, length) for of in columns]
        row_of, column_of = ({text: i for i, text in enumerate(of)} for of in columns)
        right_QN = np.zeros([len(of) for of in columns], bool)
        for question, candidate, label in zip(rows.text_a, rows.text_b, rows.labels, strict=True):
            right_QN[row_of[question], column_of[candidate]] |= label == 1
        measured = of_the_first(FIRST, all_scores(*vectors), right_QN)
        self.found = {f"{name} of {len(columns[1]):,} in {split}": value for name, value in measured.items()}


def _form(line: str | dict[str, Any]) -> tuple[str, str]:
    """The method of a recipe's line, and of this one its `vectors`."""
    name, settings = next(iter(line.items())) if isinstance(line, dict) else (line, {})
    return name, (settings or {}).get("vectors", "cls") if name == "lead" else ""


def by_pairs(cross_encoder: FrozenTeacher) -> Callable[[Batch], ModelOutputs]:
    """Let a cross-encoder read questions with several candidates (B, P, L): logits (B, P, 2)."""

    def read(batch: Batch) -> ModelOutputs:
        inputs = batch.inputs_of("teacher")
        candidates = inputs["input_ids"].shape[1]
        pairs = cross_encoder(replace(batch, inputs={name: x.flatten(0, 1) for name, x in inputs.items()}))
        return ModelOutputs(logits_BC=pairs.logits.unflatten(0, (-1, candidates)))

    return read
