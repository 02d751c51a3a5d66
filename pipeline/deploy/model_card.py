"""The model card of an exported student: what was measured of it, and nothing that is not known."""

import re
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pipeline.deploy.formats import ROWS, Form
from pipeline.report.run_record import RunRecord
from pipeline.report.templates import markdown
from stages.distillation.models import ModelSource, classifies, load_config
from stages.distillation.students.architecture import KINDS
from stages.tasks.packages import TEACHER_NAME

HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
"""The hub's names of metrics, where they are others."""

LANGUAGES = {"glue": "en", "rotten_tomatoes": "en", "newsgroups": "en", "indonesian": "id"}
"""Of readers, the language of their tasks."""

UNTOLD = re.compile(
    "task|data|corpus|teacher|student|augmentation.(masked_lm|vectors)|job.*|baselines|finetuning.*"
)
"""Options of which a card says nothing: those that name files, and those that the student does not depend on."""


def write_card(run: RunRecord, forms: list[Form], license: str, path: Path) -> None:
    """Write the card beside the exported model; `forms` is what was measured of the deployed forms, empty without ONNX."""
    base, data = _base_model(run), run.task["identity"]
    config = load_config(ModelSource(str(path.parent)))
    token_level, kind = bool(classifies(config)), config.model_type if config.model_type in KINDS else ""
    about = {
        "license": license,
        "language": LANGUAGES.get(data.get("reader"), ""),
        "base_model": base,
        "datasets": [data["hub"]] if "hub" in data else [],
        "metrics": [HUB_METRICS.get(metric, metric) for metric in run.metrics],
        "pipeline_tag": "token-classification" if token_level else "text-classification",
        "library_name": "" if kind else "transformers",
        "tags": ["knowledge-distillation", *(["onnx"] if forms else [])],
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
        pairs=len(run.texts) == 2,
        token_level=token_level,
        kind=kind,
        stages=", ".join(
            stage.name for stage in run.taken if stage.lines and not stage.name.startswith("finetuned")
        ),
        options={k: here for k, (here, _) in given.items() if not UNTOLD.fullmatch(k)},
        forms=forms,
        compared=min(ROWS, run.about["rows"]),
        max_length=run.max_length(run.main),
        machine=run.stages[-1].finished.get("machine"),
    )
    path.write_text(text, encoding="utf-8")


def _base_model(run: RunRecord) -> str:
    """What the hub calls the given teacher; empty where that is not known."""
    packaged = TEACHER_NAME if run.options["teacher"] == "packaged" else ""
    return packaged or _given(run, "teacher", "model").get("hub", "")


def _given(run: RunRecord, kind: str, name: str) -> dict[str, Any]:
    """What the first stage of a kind was given; empty where there is no such stage."""
    return next(
        (stage.spec["inputs"].get(name, {}) for stage in run.stages if stage.spec["stage_type"] == kind), {}
    )


def _digest(run: RunRecord, role: str) -> str:
    content = run.task.get("content", {})
    return content.get(role, "")[:12] if isinstance(content, dict) else str(content)[:12]
