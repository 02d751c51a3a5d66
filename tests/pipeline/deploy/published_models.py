"""Models and tokenizers as people publish them, and whether the project reads each as stock transformers does.

`python -m tests.pipeline.deploy.published_models` writes the table in docs/models.md.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from checkpoints.errors import UserError
from pipeline.deploy.classifier import Classifier
from pipeline.deploy.export import fit_settings
from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
from pipeline.deploy.smaller import write_int8
from stages.distillation.compatibility import check_padding
from stages.distillation.models import ModelSource, load_classifier, load_tokenizer
from stages.distillation.outputs import CaptureSpec, inputs_of, read
from stages.evaluation.predict import predict
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
HEAD = """\
# Models that were tried

A model reads exactly what a call of its own tokenizer gives: token types or none, special tokens, and the sides on
which texts are padded and truncated. Each model below is tiny and has random weights, and a tokenizer of the kind with
which it is published. *As stock*: inputs and logits equal those of
`model(**tokenizer(..., truncation=True, padding=True))` in stock transformers, for short and too long texts and pairs,
padded together. This holds in training, evaluation, `predict` and the exported directory. *ONNX*: also in the ONNX
file. *Refused*: the stage `check` refuses the model with the line that follows. If a model is refused for its
attention, take one of the kind of BERT, RoBERTa, ELECTRA or ModernBERT.

The test `tests/pipeline/deploy/test_published_models.py` compares each line with what happens.

| model and tokenizer | token types | result |
|---|---|---|
"""

LINES = [
    "The film is a warm and funny story, and the actors are great.",
    "A dull plot, a poor scene: I laughed at nothing and cried at the end.",
    "Straße, café und Löwe; наш фильм был хорош. 这部电影很好看!",
    "It's well-made, isn't it? 12 of 100 people said so on 3 May 2021.",
] * 3
LABELS = ["bad", "fair", "good"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS, LENGTH = 40, 24

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BERT_ENDS = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
ROBERTA_ENDS = "<s> $A </s>", "<s> $A </s> </s> $B:0 </s>"


@cache
def _trained(kind: str, special: tuple[str, ...]) -> str:
    """A tokenizer trained on the lines, without a post-processor, as JSON."""
    options: dict[str, Any] = {"vocab_size": 200, "special_tokens": list(special), "show_progress": False}
    unknown = next(token for token in special if "unk" in token.lower())
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(**options)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**options | {"vocab_size": 400}, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**options, unk_token=unknown)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer.to_str()


def tokenizer_files(
    directory: Path,
    kind: str = "wordpiece",
    special: list[str] = BERT,
    ends: tuple[str, str] = BERT_ENDS,
    name: str = "PreTrainedTokenizerFast",
    **config: Any,
) -> int:
    """Write tokenizer.json and tokenizer_config.json; returns the size of the vocabulary.

    Args:
        ends: templates of a text and of a pair.
        name: of the class.
        **config: more of tokenizer_config.json.
    """
    tokenizer = Tokenizer.from_str(_trained(kind, tuple(special)))
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(*ends, ids)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {
        "pad": "pad_token",
        "unk": "unk_token",
        "cls": "cls_token",
        "sep": "sep_token",
        "mask": "mask_token",
    }
    roles |= {"s": "cls_token", "/s": "sep_token"}
    names = {roles[token.strip("[]<>").lower()]: token for token in special}
    names |= {"bos_token": "<s>", "eos_token": "</s>"} if "<s>" in special else {}
    settings = {"tokenizer_class": name, "model_max_length": POSITIONS} | names | config
    settings = {key: value for key, value in settings.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


@dataclass(frozen=True)
class Kind:
    """A model and its tokenizer.

    Attributes:
        what: for the table.
        model: its model type.
        config: more of its config.
        tokenizer: arguments of `tokenizer_files`.
        refused: a part of the line with which it is refused.
        onnx: whether it is also written as ONNX, which takes seconds.
    """

    what: str
    model: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    refused: str = ""
    onnx: bool = False

    def make(self, directory: Path) -> Path:
        """Write a classifier of three classes with its tokenizer."""
        size = tokenizer_files(directory, **self.tokenizer)
        special = self.tokenizer.get("special", BERT)
        given = {
            "vocab_size": size,
            "pad_token_id": special.index(next(t for t in special if "pad" in t.lower())),
        }
        given |= SIZES | {"max_position_embeddings": POSITIONS, "initializer_range": 0.3}
        given |= {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
        given = {name: value for name, value in (given | self.config).items() if value is not None}
        config = AutoConfig.for_model(self.model, **given)
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
        return directory


def bert_like(name: str = "BertTokenizer", **more: Any) -> dict[str, Any]:
    return {"name": name} | more


def roberta_like(name: str = "RobertaTokenizer", kind: str = "bytes", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "special": ROBERTA, "ends": ROBERTA_ENDS} | more


ROBERTA_POSITIONS = {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
PLAIN = "PreTrainedTokenizerFast"
NO_TYPES = {"model_input_names": ["input_ids", "attention_mask"]}
TYPES = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
MODERN = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
NO_REGISTRY = "does not pass through transformers' registry"
KINDS = [
    Kind("BERT", "bert", {}, bert_like(), onnx=True),
    Kind("BERT with XLM-R's tokenizer (multilingual MiniLM, multilingual e5)", "bert", {}, roberta_like("XLMRobertaTokenizer", "unigram"), onnx=True),
    Kind("BERT, tokenizer without token_type_ids", "bert", {}, bert_like(**NO_TYPES)),
    Kind("BERT, token_type_ids all 0", "bert", {}, bert_like(PLAIN, ends=(BERT_ENDS[0], "[CLS] $A [SEP] $B [SEP]"), **TYPES)),
    Kind("BERT, token_type_ids of another pattern", "bert", {}, bert_like(PLAIN, ends=("[CLS]:1 $A [SEP]:1", "[CLS]:1 $A [SEP]:1 [SEP] $B:1 [SEP]"), **TYPES)),
    Kind("BERT, no special tokens", "bert", {}, bert_like(PLAIN, ends=("$A", "$A $B:1"), **TYPES)),
    Kind("BERT, truncated on the left", "bert", {}, bert_like(truncation_side="left")),
    Kind("BERT, its padding token not 0", "bert", {"pad_token_id": 4}, bert_like(special=[*BERT[1:], "[PAD]"])),
    Kind("RoBERTa", "roberta", ROBERTA_POSITIONS, roberta_like(), onnx=True),
    Kind("RoBERTa without `model_max_length`", "roberta", ROBERTA_POSITIONS, roberta_like(model_max_length=None)),
    Kind("RoBERTa, tokenizer with token_type_ids", "roberta", ROBERTA_POSITIONS, roberta_like(PLAIN, **TYPES)),
    Kind("XLM-RoBERTa", "xlm-roberta", ROBERTA_POSITIONS, roberta_like("XLMRobertaTokenizer", "unigram")),
    Kind("XLM-RoBERTa-XL", "xlm-roberta-xl", ROBERTA_POSITIONS, roberta_like("XLMRobertaTokenizer", "unigram")),
    Kind("CamemBERT", "camembert", ROBERTA_POSITIONS, roberta_like("CamembertTokenizer", "unigram")),
    Kind("data2vec-text", "data2vec-text", ROBERTA_POSITIONS, roberta_like()),
    Kind("DistilBERT", "distilbert", {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}, bert_like("DistilBertTokenizer"), onnx=True),
    Kind("ELECTRA", "electra", {"embedding_size": 16}, bert_like("ElectraTokenizer")),
    Kind("ALBERT", "albert", {"embedding_size": 16}, bert_like("AlbertTokenizer", kind="unigram", special=["<pad>", "<unk>", *BERT[2:]])),
    Kind("MobileBERT", "mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}, bert_like("MobileBertTokenizer")),
    Kind("ERNIE", "ernie", {}, bert_like()),
    Kind("ModernBERT", "modernbert", MODERN | {"local_attention": 8}, bert_like(PLAIN), onnx=True),
    Kind("ModernBERT, mean of the tokens, padded on the left", "modernbert", MODERN | {"classifier_pooling": "mean"}, bert_like(PLAIN, padding_side="left")),
    Kind("NomicBERT", "nomic_bert", {}, bert_like()),
    Kind("EuroBERT", "eurobert", {"bos_token_id": 2, "eos_token_id": 3, "mask_token_id": 4}, bert_like(PLAIN)),
    Kind("GTE", "gte", {}, bert_like()),
    Kind("BERT padded on the left", "bert", {}, bert_like(padding_side="left"), "pads on the left; set"),
    Kind("BERT, tokenizer without attention_mask", "bert", {}, bert_like(model_input_names=["input_ids", "token_type_ids"]), "gives no attention_mask; add it"),
    Kind("BERT, tokenizer without a padding token", "bert", {}, bert_like(PLAIN, pad_token=None), "no padding token; set"),
    Kind("BERT with the tokenizer of a larger vocabulary", "bert", {"vocab_size": 20}, bert_like(), "cannot read its tokenizer's"),
    Kind("MPNet", "mpnet", ROBERTA_POSITIONS, roberta_like(PLAIN), NO_REGISTRY),
    Kind("DeBERTa", "deberta", {}, bert_like(), NO_REGISTRY),
    Kind("DeBERTa-v2 and -v3", "deberta-v2", {}, bert_like("DebertaV2Tokenizer", kind="unigram"), NO_REGISTRY),
    Kind("RoFormer", "roformer", {"embedding_size": 16}, bert_like(), NO_REGISTRY),
    Kind("Longformer", "longformer", ROBERTA_POSITIONS | {"attention_window": 4}, roberta_like(), NO_REGISTRY),
    Kind("BigBird", "big_bird", {"attention_type": "original_full"}, bert_like(PLAIN, kind="unigram"), NO_REGISTRY),
    Kind("Funnel", "funnel", {"num_hidden_layers": None, "block_sizes": [1, 1], "d_head": 8}, bert_like(PLAIN, ends=("[CLS]:2 $A [SEP]", "[CLS]:2 $A [SEP] $B:1 [SEP]:1")), NO_REGISTRY),
    Kind("SqueezeBERT", "squeezebert", {"embedding_size": 16}, bert_like(), NO_REGISTRY),
    Kind("ConvBERT", "convbert", {"embedding_size": 16}, bert_like(), NO_REGISTRY),
    Kind("XLNet", "xlnet", {"max_position_embeddings": None, "d_head": 8}, roberta_like(PLAIN, "unigram", ends=("$A </s> <s>:2", "$A </s> $B:1 </s>:1 <s>:2"), padding_side="left"), NO_REGISTRY),
]  # fmt: skip

ROWS = {
    "texts": [["A warm film.", "Isn't it well-made? " * 9, "", "Straße, café; фильм 这部电影!"]],
    "pairs": [
        ["A warm film.", "Isn't it well-made? " * 9, "and", "great actors " * 5],
        ["Dull at the end.", "no", "12 of 100 people said so " * 9, "a poor plot " * 8],
    ],
}
"""Short, too long, empty, of other scripts; pairs whose first, second and both texts are too long."""


def outcome(kind: Kind, directory: Path) -> str:
    """The token types, and what happens, as the table says it.

    Raises:
        AssertionError: a place gives other inputs or logits than stock transformers.
    """
    source = ModelSource(str(kind.make(directory / "model")))
    try:
        tokenizer, model = load_tokenizer(source), load_classifier(source)
        check_padding(model, tokenizer)
    except UserError as error:
        why = str(error).replace(str(directory / "model"), "the model").split(": ", 1)[-1]
        return "| refused: " + re.sub(r" \(\w+\)|; give a model of .*", "", why)
    shutil.copytree(directory / "model", directory / "export")
    fit_settings(directory / "export", LENGTH, pairs=False)
    types = set()
    for what, columns in ROWS.items():
        types |= _compare(kind, model.eval(), columns, directory, directory / what)
    return f"{', '.join(map(str, sorted(types))) or 'none'} | as stock{', ONNX' if kind.onnx else ''}"


def _compare(kind: Kind, model: Any, columns: list[list[str]], directory: Path, rows_at: Path) -> set[int]:
    """Compare the five places with stock transformers on rows that are padded together; returns the token types."""
    stock, stock_tokenizer = _stock(directory / "model")
    inputs = inputs_of(stock, stock_tokenizer(*columns, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"))  # fmt: skip
    with torch.no_grad():
        expected = stock(**inputs).logits
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    split = Split(columns[0], columns[1] if len(columns) > 1 else None, [0] * len(columns[0]))
    rows = write_task_rows([split], load_tokenizer(ModelSource(str(directory / "model"))), LENGTH, rows_at)
    batch = rows.collate(np.arange(len(rows)), np.ones(len(rows), np.float32))
    read_by_model = inputs_of(model, batch.inputs)
    assert read_by_model.keys() == inputs.keys() | {"attention_mask"}
    assert all(read_by_model[name].equal(values) for name, values in inputs.items())
    with torch.no_grad():
        close(read(model, batch, CaptureSpec(logits=True)).logits_BC, expected)

    cpu = torch.device("cpu")
    evaluated = load_classifier(ModelSource(str(directory / "model")), capturing=False)
    close(torch.from_numpy(predict(evaluated.eval(), rows, cpu)), expected)

    for place, length in (("model", POSITIONS), ("export", LENGTH)):
        answers = Classifier.of_directory(directory / place)(list(zip(*columns, strict=True)))
        given = stock_tokenizer(
            *columns, truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            close(torch.from_numpy(answers), stock(**inputs_of(stock, given)).logits.softmax(-1))

    exported, exported_tokenizer = _stock(directory / "export")
    given = exported_tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
    assert (
        all(given[name].equal(values) for name, values in inputs.items())
        and given.keys() <= read_by_model.keys()
    )
    with torch.no_grad():
        close(exported(**given).logits, expected)

    if kind.onnx:
        write_onnx(evaluated, exported_tokenizer.model_input_names, rows_at / "fp32.onnx")
        write_int8(rows_at / "fp32.onnx", rows_at / "int8.onnx")
        onnx = OnnxClassifier(rows_at / "fp32.onnx", evaluated.config)
        assert {node.name for node in onnx.session.get_inputs()} == given.keys()
        close(torch.from_numpy(predict(onnx, rows, cpu)), expected)
    return set(inputs["token_type_ids"].unique().tolist()) if "token_type_ids" in inputs else set()


def _stock(directory: Path) -> tuple[Any, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


def row(kind: Kind) -> str:
    """The line of the table."""
    with tempfile.TemporaryDirectory() as directory:
        return f"| {kind.what} | {outcome(kind, Path(directory))} |\n"


if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(map(row, KINDS)), encoding="utf-8")
