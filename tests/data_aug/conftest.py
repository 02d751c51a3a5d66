"""Tiny random masked language models of several kinds, each with a tokenizer made on the spot."""

import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

WORDS = (
    "film movie story actor great bad dull warm quiet city paris love hate watch smile music voice the a of"
)
PIECES = "##s ##ing ##ly ##c un ##for ##get ##table . , ! ' - 7 1990 °"
TEXTS = [
    "The film, a great story!",
    "Great actors smile: the dull city of Paris.",
    "unforgettable music (7 voices) - the movie's story",
    "watch   the\tquiet FILM",
    "love",
    "The Film, A great story!",
]


def wordpiece() -> PreTrainedTokenizerFast:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), *PIECES.split()]
    pieces += ["(", ")", ":", "s", "##7", "##1"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_level() -> PreTrainedTokenizerFast:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{text} {WORDS}" for text in TEXTS] * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True),
    )


def tiny(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random model of two layers and 64 positions, with weights wide enough that logits differ clearly."""
    tokenizer = byte_level() if kind == "roberta" else wordpiece()
    common = {
        "vocab_size": len(tokenizer) + 3,  # some models have more rows than their tokenizer has pieces
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "distilbert":
        common |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    if kind == "electra":
        common |= {"embedding_size": 8}
    if kind == "roberta":
        common |= {"max_position_embeddings": 66, "type_vocab_size": 1}
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **common)).eval(), tokenizer


@pytest.fixture(scope="session", params=["bert", "roberta", "electra", "distilbert"])
def lm(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return tiny(request.param)


@pytest.fixture(scope="session")
def bert() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return tiny("bert")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS
