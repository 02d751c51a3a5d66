"""Loading encoders and classifiers, from a directory or the hub, without ever running their code."""

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BaseImageProcessor,
    BertConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from checkpoints.errors import UserError
from checkpoints.store import read_json
from stages.distillation.outputs import ATTENTION
from stages.distillation.sentence_vectors import MODULES, POOLING, AutoModelForSentenceSimilarity
from stages.distillation.students import architecture  # noqa: F401 (makes its kinds known to transformers)
from stages.distillation.students.vision import draw_tokens
from stages.distillation.task_heads import (
    HEADS,
    check_head,
    head_of,
    kind_of,
    label_names,
    one_output,
    recombine_outputs,
    to_learned_scale,
)
from stages.distillation.weights import Arrived
from stages.tasks.caption_rows import ImageTextProcessor
from stages.tasks.graph_rows import Graph
from stages.tasks.image_rows import side
from stages.tasks.kinds import Classes, ImageTexts, Kind, Nodes, Ranking, Similarity

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a local directory, or a hub name at a pinned revision."""

    name: str
    revision: str | None = None
    allow_bin: bool = False

    @staticmethod
    def of(entry: dict[str, Any], allow_bin: bool = False) -> "ModelSource":
        """From a stage's input: {"path": ...} or {"hub": ..., "revision": ...}."""
        return ModelSource(entry.get("path") or entry["hub"], entry.get("revision"), allow_bin)


Say = Callable[[str], object]
"""Called with a line about weights that are not taken as they are."""


def load_config(source: ModelSource) -> PretrainedConfig:
    """Load a model's config, except settings of how the model is run (`return_dict`, the attention implementation).

    If it names no class of transformers, the weights tell which classifier it is.

    Published TinyBERT weights name no model type: they are BERT.
    """
    arguments = {"revision": source.revision} if source.revision else {}
    with _told(source):
        settings, _ = PretrainedConfig.get_config_dict(source.name, **arguments)
        _check_labels(settings.get("id2label"))
        if "model_type" not in settings:
            config: PretrainedConfig = BertConfig.from_dict(settings)
        else:
            config = AutoConfig.from_pretrained(source.name, trust_remote_code=False, **arguments)
    known = any(hasattr(transformers, name) for name in config.architectures or ())
    if head_of(config) is None and not known:
        config.architectures = _filled_classifier(source, config)
    if config.id2label:  # some write numbers
        config.id2label = {int(i): str(name) for i, name in config.id2label.items()}
    if one_output(config):
        config.id2label = dict(enumerate(map(str, config.ranking)))
    config.return_dict = True  # what reads a model's outputs reads them by name
    config._attn_implementation_internal = None  # that of whoever saved it, which may not be installed
    if (pooling := _pooling(source)) not in ("", "mean"):
        setattr(config, POOLING, pooling)
    return config


def _pooling(source: ModelSource) -> str:
    """How a directory of sentence-transformers, here or on the hub, pools sentence vectors; empty if it is none."""

    def find(name: str, folder: str = "") -> Path | None:
        found = cached_file(
            source.name, name, subfolder=folder, revision=source.revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return Path(found) if found else None

    path = find("config.json", "1_Pooling")
    if path is None:
        return ""
    settings, prefix = read_json(path), "pooling_mode_"
    modes = [
        name.removeprefix(prefix) for name, on in settings.items() if on is True and name.startswith(prefix)
    ]
    pooling = settings.get("pooling_mode") or "+".join(modes).replace("cls_token", "cls").replace(
        "mean_tokens", "mean"
    )
    modules = find(MODULES)
    types = re.findall(r'"type": *"[^"]*?(\w+)"', modules.read_text("utf-8", "replace")) if modules else []
    return ", then ".join(
        [pooling, *(name for name in types if name not in ("Transformer", "Pooling", "Normalize"))]
    )


def _check_labels(id2label: Any) -> None:
    """Raise a UserError unless a config.json numbers its labels from 0."""
    numbered = isinstance(id2label, dict) and {*map(str, id2label)} == {*map(str, range(len(id2label)))}
    if id2label is not None and not numbered:
        raise UserError(
            f'"id2label" in its config.json is {id2label!r:.80}; number the labels in the order of the outputs: '
            '{"0": ..., "1": ...}'
        )


def _filled_classifier(source: ModelSource, config: PretrainedConfig) -> list[str] | None:
    """The class of model with a head of which the weights lack nothing, if there is one."""
    with torch.random.fork_rng(devices=[]):
        for head, auto in HEADS.items():
            if head == Similarity.head:  # which has no weights
                continue
            try:
                arrived, _ = _read(auto, source, config)
            except UserError:  # there is no such classifier of its kind, or no weights are there to ask
                continue
            if not arrived.missing:
                return [type(arrived.model).__name__]
    return None


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's fast tokenizer, but never from a bare vocabulary file: such a one turns all into [UNK]."""
    with _told(source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, revision=source.revision or "main", trust_remote_code=False, use_fast=True
        )
    if not tokenizer.is_fast:
        raise UserError(f"{source.name}: has no fast tokenizer; give a model with a tokenizer.json")
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens}:
        raise UserError(f"{source.name}: has no tokenizer; give a model with a tokenizer.json")
    if tokenizer.pad_token is None:
        raise UserError(
            f'{source.name}: its tokenizer has no padding token; set "pad_token" in tokenizer_config.json'
        )
    tokenizer.backend_tokenizer.no_truncation()  # some ship a length of their own
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def load_image_processor(source: ModelSource) -> BaseImageProcessor:
    """Load what makes a model's pixels of an image; Pillow's form of it, whatever else is installed."""
    try:
        return AutoImageProcessor.from_pretrained(
            source.name, revision=source.revision or "main", trust_remote_code=False, backend="pil"
        )
    except Exception as error:  # as in `_told`
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source.name} has no image processor that can be loaded ({reason}); give a model that reads images, with its "
            "preprocessor_config.json"
        ) from error


def load_preprocessor(source: ModelSource, kind: Kind) -> Any:
    """Load what makes a model's inputs of the rows of a kind of task: image processor, tokenizer, both, or graph."""
    if isinstance(kind, Nodes):
        return kind.graph or Graph.load(Path(source.name))
    if isinstance(kind, ImageTexts):
        return ImageTextProcessor(load_image_processor(source), load_tokenizer(source))
    return load_image_processor(source) if kind.reads_images else load_tokenizer(source)


def note_image_size(config: PretrainedConfig, preprocessor: Any) -> PretrainedConfig:
    """Note in a model's config the side of the images that it is given, where the config does not say (a convnet's)."""
    if isinstance(preprocessor, BaseImageProcessor) and not hasattr(config, "image_size"):
        config.image_size = side(preprocessor)
    return config


def has_weights(source: ModelSource) -> bool:
    """Whether a model has weights; a local directory may hold its config alone."""
    directory = Path(source.name)
    return not directory.is_dir() or any(any(directory.glob(f"*.{end}")) for end in ("safetensors", "bin"))


def load_encoder(source: ModelSource, say: Say | None = None) -> PreTrainedModel:
    """Load an encoder without a task head, in fp32, with the capturing attention function.

    Raises:
        UserError: a weight of the encoder is missing, has another shape, or has no place in the model.
    """
    return _load(AutoModel, source, load_config(source), capturing=True, say=say).model


def load_classifier(
    source: ModelSource,
    kind: Kind | None = None,
    capturing: bool = True,
    config: PretrainedConfig | None = None,
    say: Say | None = None,
) -> PreTrainedModel:
    """Load a model with a head for a kind of task, in fp32.

    If the weights have no head, or one for other labels, a new head is drawn from torch's generator.

    Args:
        kind: kind of the task that the model answers; None keeps the checkpoint's own labels and head.
        capturing: whether the model gets the capturing attention function; False for stock attention.
        config: used instead of the config beside the weights.
        say: called with a line when a prefix is taken off the names of the weights, or a head is dropped.

    Raises:
        UserError: a weight of the encoder (without `kind` also of the head) is missing, has another shape, or has no
            place in the model.
    """
    own = load_config(source)
    config = config or copy.deepcopy(own)
    ranker = Ranking(label_names(own)) if one_output(own) else None
    if kind:
        kind.configure(config)
        ranker = ranker if ranker and (ranker.name, ranker.labels) == (kind.name, kind.labels) else None
    auto = HEADS[kind.head if kind else head_of(config) or Classes.head]
    own_head = kind is None and auto is not AutoModelForSentenceSimilarity  # which has no weights
    if ranker:
        config.num_labels = 1
    arrived = _load(auto, source, config, capturing, own_head, say)
    if ranker:
        recombine_outputs(arrived.model, [[0.0], [1.0]])
        ranker.configure(arrived.model.config)
    if kind and head_of(own) is not None and not arrived.dropped_head:
        given = kind_of(own)
        if (given.name, given.labels) == (kind.name, kind.labels):
            to_learned_scale(arrived.model, kind.scale)
        else:
            _draw_head(arrived.model)
            if say:
                say(
                    f"{source.name}: its head is of another task ({', '.join(given.labels or (given.name,)):.100}); it is "
                    "dropped, a new one is learned"
                )
    return arrived.model


def new_classifier(config: PretrainedConfig, kind: Kind) -> PreTrainedModel:
    """Make a model with random weights, drawn from torch's generator, for a kind of task.

    Raises:
        UserError: there is no such head for a model of that type.
    """
    kind.configure(config)
    check_head(config, kind)
    model = HEADS[kind.head].from_config(config, **_attention(config))
    draw_tokens(model)
    return model


def _attention(config: PretrainedConfig) -> dict[str, str]:
    """The argument that gives a model the capturing attention function; a convnet takes none."""
    reads_images = type(config) in AutoModelForImageClassification._model_mapping
    has_none = reads_images and not hasattr(config, "num_attention_heads")
    return {} if has_none else {"attn_implementation": ATTENTION}


def _draw_head(model: PreTrainedModel) -> None:
    """Give the layers above the encoder new random weights."""
    fresh = type(model)._from_config(model.config).state_dict()
    prefix = model.base_model_prefix
    heads = [n for n in fresh if (not n.startswith(f"{prefix}.") if prefix else n.startswith("classifier."))]
    model.load_state_dict({name: fresh[name] for name in heads}, strict=False)


def load_masked_lm(source: ModelSource) -> tuple[PreTrainedModel, bool]:
    """Load a masked language model in fp32, and say whether its head was among the weights.

    A missing head's dense layer starts as the identity, so that initial logits come from the tied embeddings.

    Raises:
        UserError: it cannot be loaded, or models of its type have no such head.
    """
    config = load_config(source)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"{source.name}: {config.model_type} has no masked-LM head; give a masked language model"
        )
    arrived = _load(AutoModelForMaskedLM, source, config, capturing=True)
    model, has_head = arrived.model, not arrived.missing
    if not has_head:
        for name, module in model.named_modules():
            inside = name.startswith(model.base_model_prefix + ".")
            if isinstance(module, nn.Linear) and not inside and module.in_features == module.out_features:
                nn.init.eye_(module.weight)
    return model, has_head


def _load(
    kind: Any,
    source: ModelSource,
    config: PretrainedConfig,
    capturing: bool,
    own_head: bool = False,
    say: Say | None = None,
) -> Arrived:
    """Load a model of which all weights arrived.

    Args:
        own_head: the head's, too.
    """
    arrived, prefix = _read(kind, source, config, capturing)
    if faults := arrived.faults(own_head):
        raise UserError(
            f"{source.name}: its weights do not fit the {type(arrived.model).__name__} of its config.json: {faults}; "
            "give config.json and all weight files of one model"
            + ("" if arrived.faults(False) else ', or remove "architectures" from config.json for a new head')
        )
    if say and arrived.left_out:
        say(
            f"{source.name}: its {arrived.left_out} have no place in a {type(arrived.model).__name__}; they are left out"
        )
    if say and prefix:
        say(f"{source.name}: {prefix!r} is taken off the names of its weights")
    if say and arrived.dropped_head:
        say(
            f"{source.name}: its head is of another task ({arrived.dropped_head}); it is dropped, a new one is learned"
        )
    return arrived


def _read(
    kind: Any, source: ModelSource, config: PretrainedConfig, capturing: bool = False
) -> tuple[Arrived, str]:
    """Load what there is, and return it with the prefix that was taken off the names of the weights."""
    arguments: dict[str, Any] = _attention(config) if capturing else {}
    if source.revision:
        arguments["revision"] = source.revision

    def read(**more: Any) -> Arrived:
        with _told(source):
            return Arrived.of(*kind.from_pretrained(
                source.name, config=config, dtype=torch.float32, trust_remote_code=False,
                use_safetensors=None if source.allow_bin else True, output_loading_info=True,
                ignore_mismatched_sizes=True, **arguments, **more,
            ))  # fmt: skip

    arrived = read()
    if prefix := arrived.prefix:
        return read(key_mapping={f"^{re.escape(prefix)}": ""}), prefix
    return arrived, ""


@contextmanager
def _told(source: ModelSource) -> Iterator[None]:
    """Re-raise model-loading errors as UserError."""
    try:
        yield
    # Of files that anyone may have written: safetensors' own, type errors of a config.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, UserError):
            raise UserError(f"{source.name}: {error}") from None
        if lacks := _lacks(Path(source.name)):
            raise UserError(f"{source.name}: {lacks}") from error
        if "scaled_dot_product_attention" in reason:
            raise UserError(
                f"{source.name}: its attention ({reason.split()[0]}) does not pass through transformers' registry of "
                "attention functions; give a model of BERT's, RoBERTa's, ELECTRA's or ModernBERT's kind"
            ) from error
        if not source.allow_bin and "safetensors" in reason:
            raise UserError(
                f"{source.name} has no model.safetensors; set it to true to load .bin weights (tensors only), or save the model "
                "again with save_pretrained",
                argument="allow_bin",
            ) from error
        raise UserError(f"{source.name} cannot be loaded: {reason}") from error


def _lacks(directory: Path) -> str:
    """What is wrong with the files of weights in a directory; empty for what is not known."""
    if not directory.is_dir():
        return ""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                return f"{path.name} is a pointer of git-lfs, not the weights; fetch them with `git lfs pull`"
    if (directory / "model.safetensors").is_file():
        return ""
    if not (directory / "config.json").is_file():
        return "has no config.json; give a directory that a model was saved in"
    for index in directory.glob("*.safetensors.index.json"):
        weight_map = read_json(index).get("weight_map")
        names = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        if missing := sorted(name for name in names if not (directory / Path(name).name).is_file()):
            return f"{index.name} names {missing[0]:.100}, which is not there; copy all {len(names)} files of weights"
    if (directory / "adapter_config.json").is_file():
        return "it holds an adapter of PEFT, not a model; merge it into its model (merge_and_unload) and save that"
    others = any(directory.glob("tf_model*")) or any(directory.glob("flax_model*"))
    if others and not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        return "its weights are TensorFlow's or Flax's; save them as model.safetensors with transformers"
    return ""
