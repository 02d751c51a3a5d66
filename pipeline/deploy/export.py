"""The finished student as its users deploy it: a Hugging Face directory with a model card, and ONNX."""

import json
import shutil
from pathlib import Path

from checkpoints import store
from pipeline.deploy.formats import Form, compared_forms
from pipeline.deploy.model_card import write_card
from pipeline.report.run_record import RunRecord
from stages.distillation.models import ModelSource, classifies, load_config
from stages.distillation.students.architecture import KINDS
from stages.distillation.students.architecture import __name__ as KINDS_MODULE


def export(run: RunRecord, target: Path, with_onnx: bool, license: str) -> list[Form]:
    """Write the student to `target`, which is not there yet; what was measured of its forms, where ONNX is one.

    Raises:
        UserError: the student is damaged, ONNX does not answer as it does, the disk is full.
    """
    source, staging = run.model(run.main), store.fresh_staging(target)
    try:
        for path in source.iterdir():
            if path.name != store.MANIFEST:
                shutil.copyfile(path, staging / path.name)
        _fit_tokenizer(staging, run.max_length(run.main))
        forms = compared_forms(run, staging) if with_onnx else []
        write_card(run, forms, license, staging / "README.md")
        staging.rename(target)
    except Exception as error:
        raise store.disk_error(error, target) from error
    finally:
        store.remove(staging)
    return forms


def how_to_load(directory: Path) -> str:
    """What loads an exported model, in a line."""
    config = load_config(ModelSource(str(directory)))
    auto = f"AutoModelFor{'Token' if classifies(config) else 'Sequence'}Classification"
    line = f"{auto}.from_pretrained({str(directory)!r}) loads it"
    if config.model_type in KINDS:
        return f"after `import {KINDS_MODULE}` of this project {line}; the ONNX files need nothing of it"
    return line


def _fit_tokenizer(directory: Path, length: int) -> None:
    """Let the tokenizer give what the student reads, and cut (`truncation=True`) where its rows were cut."""
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    segments = getattr(load_config(ModelSource(str(directory))), "type_vocab_size", 0) > 1
    store.write_json(path, settings | {
        "model_max_length": length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
    })  # fmt: skip
