"""The finished student as its users deploy it: a Hugging Face directory with a model card, and ONNX."""

import json
import shutil
from pathlib import Path

from checkpoints import store
from pipeline.card import write_card
from pipeline.finished import FinishedRun
from pipeline.forms import Form, compared_forms
from stages.distillation.models import ModelSource, load_config


def export(run: FinishedRun, target: Path, with_onnx: bool, license: str) -> list[Form]:
    """Write the student to `target`, which is not there yet; what was measured of its forms, where ONNX is one.

    Raises:
        UserError: the student is damaged, ONNX does not answer as it does, the disk is full.
    """
    source, aside = run.model(run.main), store.fresh_aside(target)
    try:
        for path in source.iterdir():
            if path.name != store.MANIFEST:
                shutil.copyfile(path, aside / path.name)
        _fit_tokenizer(aside, run.max_length(run.main))
        forms = compared_forms(run, aside) if with_onnx else []
        write_card(run, forms, license, aside / "README.md")
        aside.rename(target)
    except Exception as error:
        raise store.disk_error(error, target) from error
    finally:
        store.remove(aside)
    return forms


def _fit_tokenizer(directory: Path, length: int) -> None:
    """Let the tokenizer give what the student reads, and cut (`truncation=True`) where its rows were cut."""
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    segments = getattr(load_config(ModelSource(str(directory))), "type_vocab_size", 0) > 1
    store.write_json(path, settings | {
        "model_max_length": length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"],
    })  # fmt: skip
