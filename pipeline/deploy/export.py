"""Export a finished student: a Hugging Face directory with a model card and, by choice, ONNX files."""

import shutil
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.deploy.cascade import Cascade, With, add_cascade, forget_promise
from pipeline.deploy.classifier import PAIRS
from pipeline.deploy.formats import FormatResult, Smaller, compare_formats
from pipeline.deploy.model_card import write_card
from pipeline.report.run_record import RunRecord
from stages.distillation.models import ModelSource, load_classifier, load_config, load_tokenizer
from stages.distillation.outputs import inputs_of
from stages.distillation.sentence_vectors import MODULES, POOLING, pooling_of
from stages.distillation.students.architecture import OWN
from stages.distillation.students.architecture import __name__ as OWN_MODULE
from stages.distillation.students.dual_encoder import DualEncoderConfig
from stages.distillation.task_heads import HEADS, head_of, kind_of, one_output, to_one_output
from stages.tasks.kinds import Classes, Nodes, Ranking, Similarity


def export(
    run: RunRecord,
    target: Path,
    onnx: bool | list[Smaller],
    max_changed: float,
    license: str,
    promise: float = 0.0,
    agree_with: With = "teacher",
) -> tuple[list[FormatResult], Cascade | None]:
    """Write the student that a run is about to a new directory, which appears whole or not at all.

    Args:
        target: a path that does not exist yet.
        onnx: False: no ONNX files. True: fp32 and int8. A list: fp32 and these formats. Each file is measured. A model
            that reads images or a graph has none.
        max_changed: what a smaller format may change (`pipeline.deploy.smaller.changed`).
        license: for the model card; an identifier of the hub, or empty.
        promise: with which agreement the student answers above a threshold; 0: none is looked for.
        agree_with: whose labels these answers agree with.

    Returns:
        What was measured of each format, empty without ONNX; and the promise, if one is made.

    Raises:
        UserError: smaller formats are wanted of a model that reads no text, no threshold keeps the promise, the student is damaged, the ONNX model's logits differ from PyTorch's, or the disk is full.
    """
    if read := other_than_text(run):
        if onnx not in (True, False):
            raise UserError(
                f"ONNX is for models of text, and this one reads {read}; leave onnx= out", argument="onnx"
            )
        onnx = False
    student = run.about.student
    source, staging = run.model(student), store.fresh_staging(target)
    try:
        for path in source.iterdir():
            if path.name != store.MANIFEST:
                shutil.copyfile(path, staging / path.name)
        forget_promise(staging)
        as_cross_encoder(staging)
        fit_settings(staging, run.max_length(student), len(run.text_columns) == 2)
        if run.kind.head == Similarity.head:
            describe_sentence_encoder(staging, run.max_length(student))
        cascade = add_cascade(run, staging, promise, agree_with) if promise else None
        smaller: list[Smaller] = ["int8"] if onnx is True else onnx or []
        formats = compare_formats(run, staging, smaller, max_changed) if onnx is not False else []
        as_sentence_encoder(staging, run.max_length(student))
        write_card(run, formats, license, staging / "README.md", cascade)
        staging.rename(target)
    except Exception as error:
        raise store.disk_error(error, target) from error
    finally:
        store.remove(staging)
    return formats, cascade


def other_than_text(run: RunRecord) -> str:
    """What the models of a run read in place of text; empty for text."""
    return "images" if run.kind.reads_images else "a graph" if isinstance(run.kind, Nodes) else ""


def how_to_load(directory: Path) -> str:
    """One line on how to load an exported model."""
    if (directory / MODULES).is_file():
        return f"SentenceTransformer({str(directory)!r}) loads it"
    config = load_config(ModelSource(str(directory)))
    if one_output(config):
        return f"CrossEncoder({str(directory)!r}) loads it"
    auto = HEADS[head_of(config) or Classes.head].__name__
    line = f"{auto}.from_pretrained({str(directory)!r}) loads it"
    if config.model_type in OWN:
        onnx = "; the ONNX files do not need this project" if (directory / "onnx").exists() else ""
        return f"after `import {OWN_MODULE}` of this project, {line}{onnx}"
    return line


def as_cross_encoder(directory: Path) -> None:
    """Give a stock ranker the one output by which sentence-transformers ranks.

    One that reads long texts in windows keeps both logits: those are pooled, and sentence-transformers reads no windows.
    """
    source = ModelSource(str(directory))
    config = load_config(source)
    kind = kind_of(config)
    if isinstance(kind, Ranking) and not kind.pooling and config.model_type not in OWN:
        model = load_classifier(source, capturing=False)
        to_one_output(model)
        model.save_pretrained(directory)


def as_sentence_encoder(directory: Path, length: int) -> None:
    """Put the stock encoder of a dual encoder in its place, as sentence-transformers loads it.

    Where texts are compared by cosines, its vectors have length 1, and the cosine is the score over `scale`. One of late
    interaction stays what it is: sentence-transformers has one vector a text.
    """
    source = ModelSource(str(directory))
    config = load_config(source)
    if not isinstance(config, DualEncoderConfig) or config.vectors == "tokens":
        return
    model: Any = load_classifier(source, capturing=False)
    cosine, encoder = config.scale is not None, model.encoder
    setattr(encoder.config, POOLING, config.vectors)
    encoder.save_pretrained(directory)
    if cosine:  # as `predict` reads it
        head = f"{type(encoder).__name__.removesuffix('Model')}For{Similarity.head}"
        path = directory / "config.json"
        store.write_json(path, store.read_json(path) | {"architectures": [head]})
    describe_sentence_encoder(directory, length, cosine)


def describe_sentence_encoder(directory: Path, length: int, cosine: bool = True) -> None:
    """Write the files by which sentence-transformers loads an encoder with its pooling.

    Args:
        length: tokens of a text.
        cosine: whether vectors are compared by the cosine, and normalised; else by the inner product.
    """
    config = load_config(ModelSource(str(directory)))
    pooling = pooling_of(config)
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + cosine]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(steps)
    ]
    modes = {"cls_token": pooling == "cls", "mean_tokens": pooling == "mean", "max_tokens": False}
    modes = {f"pooling_mode_{name}": chosen for name, chosen in modes.items()}
    for path, _ in steps[1:]:
        (directory / path).mkdir()
    store.write_json(directory / MODULES, modules)
    store.write_json(
        directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size} | modes
    )
    store.write_json(
        directory / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False}
    )
    store.write_json(
        directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine" if cosine else "dot"}
    )


def fit_settings(directory: Path, length: int, pairs: bool) -> None:
    """Let the tokenizer return the inputs with which the student was measured, and truncate at the same length.

    The config says whether a row has two texts, for `predict`. Tokenizer and model load in transformers 4, too.
    """
    source = ModelSource(str(directory))
    model = load_classifier(source, capturing=False)
    if kind_of(model.config).reads_images or isinstance(kind_of(model.config), Nodes):
        return  # the image processor is as it was, and the config is one that transformers 4 reads
    names = inputs_of(model, dict.fromkeys([*load_tokenizer(source).model_input_names, "attention_mask"]))
    fitted = {"model_max_length": length, "model_input_names": list(names)}
    for file, change in (
        ("tokenizer_config.json", lambda settings: tokenizer_settings(settings | fitted)),
        ("config.json", lambda settings: model_settings(settings | {PAIRS: pairs})),
    ):
        path = directory / file
        store.write_json(path, change(store.read_json(path)))


def tokenizer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json for transformers 4 and 5."""
    settings = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def model_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json for transformers 4 and 5.

    ModernBERT's layers that attend to all tokens are every n-th in transformers 4. Where a student's are not, n is 0:
    there transformers 4 ends with an error, where it would answer wrongly.
    """
    rope, kinds = settings.get("rope_parameters") or {}, settings.get("layer_types") or []
    if not {"full_attention", "sliding_attention"} <= rope.keys():
        return settings
    every = [
        n
        for n in range(1, len(kinds) + 1)
        if kinds == ["sliding_attention" if i % n else "full_attention" for i in range(len(kinds))]
    ]
    return settings | {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": every[0] if every else 0,
    }
