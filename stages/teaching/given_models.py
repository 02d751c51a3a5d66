"""Do the given models fit each other, the task, and what each stage does with them? No rows are needed to tell."""

from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError, about
from stages.distillation.compatibility import (
    check_length,
    check_padding,
    check_tokenizers,
    check_vocabularies,
)
from stages.distillation.layer_maps import layer_map
from stages.distillation.losses import build
from stages.distillation.models import (
    ModelSource,
    Say,
    has_weights,
    load_classifier,
    load_config,
    load_encoder,
    load_preprocessor,
    load_tokenizer,
    note_image_size,
)
from stages.distillation.outputs import CaptureSpec
from stages.distillation.sentence_vectors import check_reads_apart
from stages.distillation.students.architecture import check_layers, student_config
from stages.distillation.students.graph_networks import GRAPHS, RGCNConfig
from stages.distillation.students.strips import STRIPS
from stages.distillation.students.vision import VISION
from stages.distillation.task_heads import check_head, knows
from stages.distillation.teachers import check_problem_type, class_order
from stages.distillation.trimmed_vocabulary import teacher_ids
from stages.methods import build_method
from stages.tasks.graph_rows import Graph
from stages.tasks.kinds import ImageClasses, ImageTexts, Nodes, Similarity
from stages.tasks.task import Task
from stages.training.options import StageToCheck
from stages.training.step import StepKind


@dataclass
class Models:
    """The given models.

    Attributes:
        preprocessor: the teacher's tokenizer, image processor or graph.
        teacher: its config.
        student: the student's.
        own: the tokenizer of a given student that has a vocabulary of its own, and keeps it.
    """

    preprocessor: Any
    teacher: PretrainedConfig
    student: PretrainedConfig
    own: Any = None

    def knows(self, task: Task | None) -> bool:
        """Whether the teacher classifies as the task needs; otherwise it is tuned first."""
        return task is not None and knows(self.teacher, task.kind)


def check_models(
    teacher: ModelSource, student: ModelSource | None, options: dict[str, Any], task: Task | None, say: Say
) -> Models:
    """Check vocabularies, classes, weights, padding, and the layers and lengths of every training stage.

    Args:
        student: a general student, if one is given.
        options: the options of the stage `check`.
        task: with its rows.
        say: called with a line for each change to the given weights, such as a head that is dropped.
    """
    if task and (task.kind.reads_images or isinstance(task.kind, Nodes)):
        if student:
            raise UserError(
                f"{student.name} reads text, and the task has {'images' if task.kind.reads_images else 'a graph'}; leave it out",
                argument="student",
            )
        return _check_models_of_recipe(teacher, options, task, say)
    tokenizer, config = load_tokenizer(teacher), load_config(teacher)
    given = load_config(student) if student else student_config(config, **options["architecture"])
    models = Models(tokenizer, config, given)
    smaller = given.vocab_size < config.vocab_size
    check_vocabularies(config, config if smaller else given, len(tokenizer))
    if task and models.knows(task):
        check_problem_type(config, task.kind)
        class_order(config, task.labels, options["teacher_labels"])
    if task and task.kind.head == Similarity.head:
        check_reads_apart(tokenizer)
    for name, plan in options["stages"].items():
        with about(name):
            plan = StageToCheck(**plan)
            check_plan(plan, models, None if plan.learns_task and plan.data != "task" else task)
    loaded = _loaded(teacher, models.knows(task), task, say)
    check_padding(loaded, tokenizer)
    if "width" not in options["architecture"]:  # the student begins as layers of the teacher
        check_layers(loaded)
    if student:
        exchanges = bool(
            options["architecture"].get("vocabulary")
        )  # of its tokens, by the stage `vocabulary`
        _loaded(student, False, task, say)
        try:
            own = load_tokenizer(student)
        except UserError as error:
            if smaller or exchanges:
                raise
            say(f"of the vocabularies only the sizes were compared: {error}")
        else:
            if smaller:
                # Raises where the student's tokens are not a part of the teacher's.
                teacher_ids(own, tokenizer)
                check_vocabularies(given, given, len(own))
                models.own = None if exchanges else own
            else:
                check_tokenizers(tokenizer, own)
    return models


def _check_models_of_recipe(teacher: ModelSource, options: dict[str, Any], task: Task, say: Say) -> Models:
    """What `check_models` is for text, for images and graphs, which only recipes read."""
    rows, example = ("images", "deit") if task.kind.reads_images else ("a graph", "hire")
    for name, plan in options["stages"].items():
        if name != "tuning" and (plan["losses"] is None or plan["data"] != "task"):
            raise UserError(
                f"{task.name} has {rows}, which this stage does not read; give it to a recipe whose students learn from the "
                f"task, such as {example}",
                argument=name,
            )
    preprocessor = load_preprocessor(teacher, task.kind)
    config = note_image_size(load_config(teacher), preprocessor)
    if isinstance(task.kind, Nodes):
        _check_graph(teacher, config, task.kind)
    models = Models(preprocessor, config, config)
    if models.knows(task):
        class_order(config, task.labels, options["teacher_labels"])
    for name, plan in options["stages"].items():
        with about(name):
            check_plan(StageToCheck(**plan), models, task)
    if has_weights(teacher):
        _loaded(teacher, models.knows(task), task, say)
    return models


def _check_graph(teacher: ModelSource, config: PretrainedConfig, kind: Nodes) -> None:
    """Check that a teacher reads graphs, and if it has learned one, that it is the task's; note the graph in its config."""
    if not isinstance(config, RGCNConfig):
        raise UserError(
            f"{teacher.name}: a {config.model_type} does not read graphs; give packaged-rgcn, packaged-han, or a teacher "
            "that one of them became",
            argument="teacher",
        )
    if has_weights(teacher) and Graph.load(Path(teacher.name)) != kind.graph:
        raise UserError(
            f"{teacher.name} has learned another graph, and knows none of these nodes; give a teacher without weights, such "
            "as packaged-rgcn",
            argument="teacher",
        )
    kind.configure(config)


def _loaded(source: ModelSource, keeps_head: bool, task: Task | None, say: Say) -> PreTrainedModel:
    """A model as the stages will load it."""
    if task is None:
        return load_encoder(source, say)
    return load_classifier(source, None if keeps_head else task.kind, say=say)


def check_plan(
    plan: StageToCheck, models: Models, task: Task | None
) -> tuple[PretrainedConfig, bool, StepKind]:
    """Check layers, losses and lengths of a training stage.

    Returns:
        The config of the model that it trains, whether its losses read the teacher, and what its step needs.
    """
    teacher, student, reads_teacher = models.teacher, models.student, plan.reads_teacher
    kind = StepKind()
    if task and plan.learns_task and not plan.epochs and task.kind.head != Similarity.head:
        raise UserError(
            "0 leaves the new head untrained, for only sentence vectors need none; give 1 or more",
            argument="epochs",
        )
    if plan.mixing and task and task.kind.head != ImageClasses.head:
        name, alpha = next((name, alpha) for name, alpha in plan.mixing.items() if alpha)
        raise UserError(
            f"{alpha:g} mixes images and their classes, and the task has {task.kind.name}; leave this out",
            argument=name,
        )
    if plan.losses is not None and plan.student is not None:  # a recipe's student
        student = _student_of_recipe(plan, plan.student, models, task)
        spec, kind = _check_losses(plan, plan.losses, student, models, task)
        reads_teacher = spec != CaptureSpec()
    elif plan.layer_map is not None:
        layer_map(plan.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    trained = teacher if plan.trains == "teacher" else student
    for config in (trained, teacher) if reads_teacher else (trained,):
        check_length(config, plan.max_length)
    return trained, reads_teacher, kind


def _student_of_recipe(
    plan: StageToCheck, sizes: dict[str, Any], models: Models, task: Task | None
) -> PretrainedConfig:
    """The config of a recipe's student, which must read and answer what the stage gives it."""
    kind = sizes.get("kind", "")
    if task and isinstance(task.kind, ImageTexts):
        if kind:
            raise UserError(
                f"{kind!r} does not read images and captions, whose student is of the teacher's kind; leave it out",
                argument="student.kind",
            )
    elif task and (task.kind.reads_images or isinstance(task.kind, Nodes)):
        of_images = "images", STRIPS if task.kind.head == "CTC" else VISION
        what, able = of_images if task.kind.reads_images else ("graphs", GRAPHS)
        if kind not in able:
            raise UserError(
                f"{kind!r} does not read {what}; a student of them is of kind {' or '.join(able)}: give one of these",
                argument="student.kind",
            )
    tokenizer = models.preprocessor
    if sizes:
        student = student_config(models.teacher, **sizes)
    else:
        student = copy(models.student)
        student.vocab_size = models.teacher.vocab_size
    if student.model_type in ("bert_with_token", "bilstm") and tokenizer.padding_side == "left":
        raise UserError(
            f"{student.model_type!r} reads a row from its first column on, but the teacher's tokenizer pads on the left; "
            "give textcnn",
            argument="kind",
        )
    body = AutoModelForMaskedLM if plan.mlm_probability else AutoModel
    if not plan.learns_task and type(student) not in body._model_mapping:
        raise UserError(
            f"{student.model_type!r} does not learn from unlabelled text; a student that does is of the teacher's kind "
            "or cmow: leave it out, or give cmow",
            argument="student.kind",
        )
    reads_types = getattr(student, "reads_token_types", False)
    if reads_types and "token_type_ids" not in tokenizer.model_input_names:
        raise UserError(
            "'diffcat' tells two texts apart by token types, which the teacher's tokenizer does not give; give joint",
            argument="settings.pairs",
        )
    if student.model_type == "bert_with_token" and task and not task.kind.labels:
        raise UserError(
            f"a bert_with_token answers with classes, and the task has {task.kind.name}; take another kind",
            argument="student.kind",
        )
    return student


def _check_losses(
    plan: StageToCheck, lines: list[Any], student: PretrainedConfig, models: Models, task: Task | None
) -> tuple[CaptureSpec, StepKind]:
    """Check the method and the losses of a recipe's student.

    Returns:
        What the losses read of the teacher, and what the step needs.
    """
    method = build_method(plan.method, plan.reads)
    whose = {0: models.teacher, None: models.student}
    layers = {
        name: whose[of].num_hidden_layers if of in whose else of for name, of in plan.layers_read.items()
    }
    method.check_plan(replace(plan, layers_read=layers))
    if method.reads_apart:
        check_reads_apart(models.preprocessor)
    configs = (student, models.teacher, plan.layer_map, plan.mlm_probability or 0.0)
    losses = {str(line): build(line, *configs) for line in method.losses(lines)}
    if plan.mixing and (one_label := [line for line, loss in losses.items() if loss.one_label]):
        raise UserError(
            f"{one_label[0]} reads one label of an image, and mixup and cutmix give it two; leave them out, or take "
            "gold_labels",
            argument="losses",
        )
    if task and (task.kind.token_level or not task.kind.exclusive):
        for line in (line for line, loss in losses.items() if loss.one_class):
            raise UserError(
                f"{line} needs one class a row, and the task has {task.kind.name}; take soft_labels",
                argument="losses",
            )
    spec = reduce(or_, (loss.teacher_capture for loss in losses.values()), CaptureSpec())
    if student.model_type == "bert_with_token" and spec != CaptureSpec(logits=spec.logits):
        raise UserError(
            "losses on layers compare tokens one by one, and a bert_with_token has one more; take losses on logits",
            argument="losses",
        )
    if plan.data != "task" and plan.learns_task and spec != CaptureSpec():
        raise UserError(
            f"{plan.losses} read a teacher, and there is none of another task; take gold_labels",
            argument="losses",
        )
    if task:
        check_head(student, task.kind)
        method.check(task, student, spec)
    whole_batch = any(loss.whole_batch for loss in losses.values())
    return spec, method.step_kind(losses.values())._replace(whole_batch=whole_batch)
