"""Write the model card of an exported student: what was measured of it, and nothing that is not known."""

import re
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pipeline.deploy.cascade import Cascade
from pipeline.deploy.formats import FormatResult, shown
from pipeline.report.run_record import RunRecord
from pipeline.report.templates import markdown
from stages.distillation.models import ModelSource, load_config
from stages.distillation.sentence_vectors import MODULES
from stages.distillation.students.architecture import OWN
from stages.distillation.task_heads import head_of, one_output
from stages.evaluation.results import busy_note
from stages.tasks.kinds import Classes, ImageTexts, Nodes, Questions, Ranking, Sequences, Similarity
from stages.tasks.packages import TEACHER_NAME

HUB_METRICS = {
    "matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr", "micro_f1": "f1",
    "macro_f1": "f1",
}  # fmt: skip
"""The hub's names of metrics, where they differ from ours."""

LANGUAGES = {
    "glue": "en",
    "rotten_tomatoes": "en",
    "newsgroups": "en",
    "indonesian": "id",
    "chatterbot": "en",
}
"""Reader -> the language of its tasks."""

PIPELINES = {
    "SequenceClassification": "text-classification", "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering", "ImageClassification": "image-classification",
    "CTC": "image-to-text",
    "NodeClassification": "graph-ml",
    "SentenceSimilarity": "sentence-similarity",
    "ZeroShotImageClassification": "zero-shot-image-classification",
}  # fmt: skip
"""Head -> the hub's name of its task."""

OMITTED = re.compile(
    "task|data|corpus|teacher|student|augmentation.(masked_lm|vectors)|answers.encoder|job.*|baselines|finetuning.*"
)
"""Options that a card leaves out: those that name files, and those that the student does not depend on."""


def write_card(
    run: RunRecord, formats: list[FormatResult], license: str, path: Path, cascade: Cascade | None = None
) -> None:
    """Write the card beside the exported model.

    Args:
        formats: what was measured of each exported format; empty without ONNX.
        license: an identifier of the hub, or empty.
        cascade: what the model promises above a threshold.
    """
    base, data = _base_model(run), run.task.identity
    config = load_config(ModelSource(str(path.parent)))
    head, kind = head_of(config) or Classes.head, config.model_type if config.model_type in OWN else ""
    embeds, ranks = (path.parent / MODULES).is_file(), isinstance(run.kind, Ranking)
    about = {
        "license": license,
        "language": LANGUAGES.get(data.get("reader", ""), ""),
        "base_model": base,
        "datasets": [data["hub"]] if "hub" in data else [],
        "metrics": list(dict.fromkeys(HUB_METRICS.get(metric, metric) for metric in run.metrics))
        if run.about.gold
        else [],
        "pipeline_tag": PIPELINES[Similarity.head if embeds else head]
        if embeds or head != Classes.head or not ranks
        else "text-ranking",
        "library_name": "" if kind else "transformers",
        "tags": ["knowledge-distillation", *(["onnx"] if formats else [])],
    }
    known = {key: value for key, value in about.items() if value}
    given = run.differing(run.preset_options())
    text = markdown(
        "card.md.j2",
        head=Markup(yaml.safe_dump(known, sort_keys=False, allow_unicode=True)),
        run=run,
        student=run.student,
        license=license,
        base=base,
        data=[(role, Path(file).name, _digest(run, role)) for role, file in data.get("files", {}).items()],
        hub=data.get("hub", ""),
        rows=data.get("rows", [0])[0],
        unlabelled=data.get("unlabelled", [0])[0],
        corpus=_given(run, "general", "corpus").get("name", ""),
        begins_as=_given_student(run),
        pairs=len(run.text_columns) == 2,
        token_level=run.kind.token_level,
        asks=isinstance(run.kind, Questions),
        embeds=embeds,
        cosine=head == Similarity.head,
        scores=one_output(config),
        ranks=ranks and not isinstance(run.kind, ImageTexts),
        matches=isinstance(run.kind, ImageTexts),
        sees=run.kind.reads_images,
        spells=isinstance(run.kind, Sequences),
        nodes=isinstance(run.kind, Nodes),
        kind=kind,
        pooling=getattr(config, "window_pooling", ""),
        threshold=getattr(run.kind.of_model(config), "threshold", None),
        stages=", ".join(
            stage.name
            for stage in run.stages_in_use
            if (stage.lines or stage.stage_type == "vocabulary") and not stage.name.startswith("finetuned")
        ),
        options={k: here for k, (here, _) in given.items() if not OMITTED.fullmatch(k)},
        formats=formats,
        cascade=cascade,
        busy=busy_note(f.costs for f in formats),
        compared=formats[0].rows if formats else 0,
        format_title=shown,
        max_length=run.max_length(run.about.student),
        machine=run.stages[-1].machine,
    )
    path.write_text(text, encoding="utf-8")


def _base_model(run: RunRecord) -> str:
    """The hub's name of the given teacher; empty where it is not known."""
    packaged = TEACHER_NAME if run.encoder == "packaged" else ""
    return packaged or _given(run, "teacher", "model").get("hub", "")


def _given_student(run: RunRecord) -> str:
    """The general student that a two-stage run was given; of a local directory only its name."""
    name = run.options["student"]
    if not any("student" in stage.inputs for stage in run.of_type("intermediate")) or not name:
        return ""
    return Path(name).name if Path(name).is_dir() or name.startswith(("/", ".", "~")) else name


def _given(run: RunRecord, stage_type: str, name: str) -> dict[str, Any]:
    """An input of the first stage of a type; empty where there is none."""
    return next((stage.inputs.get(name, {}) for stage in run.of_type(stage_type)), {})


def _digest(run: RunRecord, role: str) -> str:
    content = run.task.content
    return (content.get(role, "") if isinstance(content, dict) else content)[:12]
