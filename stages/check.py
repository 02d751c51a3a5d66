"""Before hours are spent: do vocabulary, labels, layers, heads and lengths fit, and what will it cost?

Tokenizes what the stages will read (the rows are cached for them), refuses what cannot work, and prints tokens, operations and truncated rows of every training stage.
"""

from typing import Any

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
from stages.training.cached_rows import corpus_rows, task_rows, train_rows
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Check every training stage of the run.

    Raises:
        ValueError: one of them cannot work.
    """
    source = stage.model("teacher")
    tokenizer, teacher = load_tokenizer(source), load_config(source)
    task = stage.task() if "task" in stage.inputs else None
    if "student" in stage.inputs:
        given = load_config(stage.model("student"))
    else:
        given = student_config(teacher, **stage.options["architecture"])
    check_vocabularies(teacher, given, len(tokenizer))
    if task and classifies(teacher) == task.token_level:
        class_order(teacher, task.labels, stage.options["teacher_labels"])

    total = 0.0
    for name, plan in stage.options["stages"].items():
        with about(name):
            total += _check_stage(stage, name, plan, teacher, given, tokenizer, task)
    if total <= 0:
        raise UserError("there is nothing to train")
    uncounted = (
        ", augmentation not counted" if any("variants" in p for p in stage.options["stages"].values()) else ""
    )
    stage.log(
        f"in all {total / 1e12:,.1f} TFLOP{uncounted}; each stage says what is left of it once its speed is measured"
    )
    stage.publish(lambda directory: (directory / "cost.txt").write_text(f"{total}\n"), {"flops": total})


def _check_stage(
    stage: Stage,
    name: str,
    plan: dict[str, Any],
    teacher: PretrainedConfig,
    given: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
) -> float:
    """Check one training stage and log what it will cost. Returns its floating-point operations."""
    layers = plan.get("layer_map")
    student, asks_teacher = given, plan["models"] != "student"
    if "losses" in plan:
        student, asks_teacher = _student(plan, teacher)
    elif layers is not None:
        layer_map(layers, student.num_hidden_layers, teacher.num_hidden_layers)
    for config in {"teacher": [teacher], "both": [teacher, student], "student": [student]}[plan["models"]]:
        check_length(config, plan["max_length"])
    if plan["data"] != "task":
        held_out = False if "mlm_probability" in plan else None
        rows = corpus_rows(stage, tokenizer, plan["max_length"], plan["tokens"], held_out, plan["data"])
    else:
        rows = train_rows(stage, task, tokenizer, plan["max_length"], plan.get("with_unlabelled", False))
        if task.token_level:
            _need_all_words(stage, task, tokenizer, plan["max_length"])
    tokens, length = int(rows.lengths.sum()) * plan["epochs"], float(rows.lengths.mean())
    variants = plan.get("variants", 0)
    if variants:
        learns_gold = plan["targets"] == "gold" or plan["targets"] == "auto" and task.labels is None
        variants *= 0 if learns_gold else 1 if task.splits["train"].text_b is None else 2
    tokens *= 1 + variants
    flops = 0.0
    if asks_teacher:
        flops += (3 if plan["models"] == "teacher" else 1) * forward_flops(teacher, tokens, length)
    if plan["models"] != "teacher":
        flops += 3 * forward_flops(student, tokens, length)
    times = f" x up to {1 + variants} variants" if variants else ""
    stage.log(
        f"{name}: {len(rows):,} rows{times} x {plan['epochs']} epochs, {tokens / 1e6:.2f} M tokens "
        f"(mean {length:.0f} a row, {rows.truncated / len(rows):.1%} of rows truncated), {flops / 1e12:,.1f} TFLOP"
    )
    return flops


def _student(plan: dict[str, Any], teacher: PretrainedConfig) -> tuple[PretrainedConfig, bool]:
    """The config of a recipe's student, whose losses fit it; and whether any of them reads the teacher."""
    student = student_config(teacher, **plan["student"])
    configs = (student, teacher, plan["layer_map"], plan.get("mlm_probability", 0.0))
    asked = [build(line, *configs).teacher_capture for line in plan["losses"]]
    return student, any(spec != CaptureSpec() for spec in asked)


def _need_all_words(stage: Stage, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Every word that has a label must be read."""
    for split in task.splits.keys() - {"train", "unlabelled"}:
        if cut := task_rows(stage, task, split, tokenizer, max_length).truncated:
            raise UserError(
                f"{max_length} tokens truncate {cut} rows of {split}, whose last words would have no prediction; raise it",
                argument="max_length",
            )
