"""Before hours are spent: do vocabulary, labels, layers, heads and lengths fit, and what will it cost?

Tokenizes what the stages will read (the rows are cached for them), refuses what cannot work, and logs the tokens,
operations and truncated rows of every training stage.
"""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from checkpoints.errors import UserError, about
from stages.distillation.compatibility import check_length, check_vocabularies, forward_flops
from stages.distillation.layer_maps import layer_map
from stages.distillation.losses import build
from stages.distillation.models import classifies, load_config, load_tokenizer
from stages.distillation.outputs import CaptureSpec
from stages.distillation.students.architecture import student_config
from stages.distillation.teachers import class_order
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.training.cached_rows import corpus_rows, task_rows, train_rows
from stages.training.options import StageToCheck
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Check every training stage of the run.

    Raises:
        ValueError: one of them cannot work.
    """
    source = stage.model("teacher")
    tokenizer, teacher = load_tokenizer(source), load_config(source)
    task = stage.task() if "task" in stage.inputs else None
    for note in task.notes if task else ():
        stage.log(note)
    if "student" in stage.inputs:
        given = load_config(stage.model("student"))
    else:
        given = student_config(teacher, **stage.options["architecture"])
    check_vocabularies(teacher, given, len(tokenizer))
    if task and classifies(teacher) == task.token_level:
        class_order(teacher, task.labels, stage.options["teacher_labels"])

    total = 0.0
    plans = {name: StageToCheck(**plan) for name, plan in stage.options["stages"].items()}
    for name, plan in plans.items():
        with about(name):
            total += check_stage(stage, name, plan, teacher, given, tokenizer, task)
    if total <= 0:
        raise UserError("there is nothing to train")
    uncounted = ", augmentation not counted" if any(plan.variants for plan in plans.values()) else ""
    stage.log(
        f"in all {total / 1e12:,.1f} TFLOP{uncounted}; each stage logs its time left once its speed is measured"
    )
    stage.publish(lambda directory: (directory / "cost.txt").write_text(f"{total}\n"), {"flops": total})


def check_stage(
    stage: Stage,
    name: str,
    plan: StageToCheck,
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
) -> float:
    """Check one training stage and log what it will cost. Returns its floating-point operations.

    Raises:
        ValueError: the student's layers or losses do not fit, rows are too long, or there are none.
    """
    reads_teacher = plan.reads_teacher
    if plan.losses is not None and plan.student is not None:  # a recipe's student
        student = student_config(teacher, **plan.student)
        configs = (student, teacher, plan.layer_map, plan.mlm_probability or 0.0)
        reads_teacher = any(build(line, *configs).teacher_capture != CaptureSpec() for line in plan.losses)
    elif plan.layer_map is not None:
        layer_map(plan.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    trained = teacher if plan.trains == "teacher" else student
    for config in (trained, teacher) if reads_teacher else (trained,):
        check_length(config, plan.max_length)
    rows = _rows(stage, plan, tokenizer, task)
    tokens, length = int(rows.lengths.sum()) * plan.epochs, float(rows.lengths.mean())
    variants = plan.variants
    if variants and task is not None:
        learns_gold = plan.targets == "gold" or plan.targets == "auto" and task.labels is None
        variants *= 0 if learns_gold else 1 if task.splits["train"].text_b is None else 2
    tokens *= 1 + variants
    flops = 3 * forward_flops(trained, tokens, length)
    flops += forward_flops(teacher, tokens, length) if reads_teacher else 0
    augmented = f" x up to {1 + variants} variants" if variants else ""
    stage.log(
        f"{name}: {len(rows):,} rows{augmented} x {plan.epochs} epochs, {tokens / 1e6:.2f} M tokens (mean {length:.0f} a "
        f"row, {rows.truncated / len(rows):.1%} of rows truncated), {flops / 1e12:,.1f} TFLOP"
    )
    return flops


def _rows(
    stage: Stage, plan: StageToCheck, tokenizer: PreTrainedTokenizerBase, task: Task | None
) -> TokenRows:
    """The rows that a stage will read, tokenized into the cache of the runs."""
    if plan.data != "task" or task is None:
        held_out = None if plan.mlm_probability is None else False
        return corpus_rows(stage, tokenizer, plan.max_length, plan.tokens, held_out, plan.data)
    if task.token_level:
        for split in task.splits.keys() - {"train", "unlabelled"}:
            if cut := task_rows(stage, task, split, tokenizer, plan.max_length).truncated:
                raise UserError(
                    f"{plan.max_length} tokens truncate {cut} rows of {split}, whose last words would have no "
                    "prediction; raise it",
                    argument="max_length",
                )
    return train_rows(stage, task, tokenizer, plan.max_length, plan.with_unlabelled)
