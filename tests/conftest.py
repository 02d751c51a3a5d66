"""Tiny models, tokenizers, corpora and tasks, made on the spot; nothing is fetched."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# The same examples each time: no run fails by luck. Search for others with --hypothesis-profile=default.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

GPU = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
GIVEN = {name: os.environ[name] for name in GPU if name in os.environ}
# Read when torch and others are imported. One thread a process, for several processes run at once.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = "the a film movie story actor good bad dull warm great poor plot scene laugh cry is was with and of it".split()
GOOD, BAD = ("good", "warm", "great", "laugh"), ("bad", "dull", "poor", "cry")


def pytest_configure(config):
    """Tests see no GPU unless `-m gpu` asks for it, and Ctrl-C works in the commands that they start.

    A shell starts what it runs in the background with Ctrl-C ignored, and commands would inherit that.
    """
    if config.option.markexpr == "gpu":
        for name in GPU:
            del os.environ[name]
        os.environ |= GIVEN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_tokenizer(directory: Path, kind: str = "bert"):
    """A word-level tokenizer with BERT's frame and segments, saved in `directory`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token="[MASK]", model_input_names=inputs, **names
    )
    fast.save_pretrained(directory)
    return fast


def tiny_config(kind: str = "bert", layers: int = 4, width: int = 16, heads: int = 4):
    """A config of a tiny model of the given kind."""
    from transformers import BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

    common = {"vocab_size": 5 + len(WORDS) + 1, "pad_token_id": 0, "max_position_embeddings": 64}
    if kind == "distilbert":
        return DistilBertConfig(dim=width, hidden_dim=2 * width, n_layers=layers, n_heads=heads, **common)
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes["intermediate_size"] = 2 * width
    if kind == "electra":
        return ElectraConfig(embedding_size=width, **sizes, **common)
    return {"bert": BertConfig, "roberta": RobertaConfig}[kind](**sizes, **common)


def make_encoder(directory: Path, kind: str = "bert", seed: int = 0, **sizes) -> Path:
    """A tiny random encoder and its tokenizer, as a Hugging Face directory."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(seed)
    AutoModel.from_config(tiny_config(kind, **sizes)).save_pretrained(directory)
    make_tokenizer(directory)
    return directory


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Sentences whose label one of their words gives away."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = int(random.integers(2))
        words = list(random.choice(WORDS[:6] + WORDS[-6:], random.integers(3, 12)))
        words.insert(int(random.integers(len(words))), str(random.choice(GOOD if label else BAD)))
        rows.append((f"{' '.join(words)} {i % 10}", label))
    return rows


def make_task(directory: Path, rows: int = 40) -> Path:
    """A CSV task with train and dev files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", rows, 1), ("dev", max(8, rows // 4), 2)):
        lines = [f"{text},{'fresh' if label else 'rotten'}" for text, label in sentences(count, seed)]
        (directory / f"{name}.csv").write_text("\n".join(["text,label", *dict.fromkeys(lines)]) + "\n")
    return directory


def write_corpus_rows(documents, tokenizer, max_length, directory, limit=None, progress=None):
    """The rows of a corpus, written by this process alone, as stages write those of a small one."""
    from stages.tasks.row_maker import RowMaker
    from stages.tasks.token_rows import TokenRows, write_rows

    maker = RowMaker.of(tokenizer, max_length)
    write_rows(maker, maker.corpus_blocks(documents, limit=limit), directory, progress)
    return TokenRows.open(directory)


def make_corpus(path: Path, documents: int = 60) -> Path:
    """A text corpus: a document a paragraph."""
    texts = [" ".join(text for text, _ in sentences(6, seed)) for seed in range(documents)]
    path.write_text("\n\n".join(texts) + "\n")
    return path


@pytest.fixture(scope="session")
def world():
    """torch.distributed with a single rank, as a worker sets it up."""
    from pipeline.launch.worker import start_ranks

    yield start_ranks()
