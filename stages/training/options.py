"""The options that stages read. Each is defined once: its name, default, unit and source."""

from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with the line that `--help` shows. A list default is copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Architecture:
    """The student made from random weights, of the teacher's own kind of model."""

    layers: int = option(4, "transformer layers (TinyBERT4: 4, paper section 4.1)")
    width: int = option(312, "width of the hidden states d' (TinyBERT4: 312)")
    feed_forward: int = option(1200, "width of the feed-forward layers d'_i (TinyBERT4: 1200)")
    heads: int = option(12, "attention heads (TinyBERT4: 12)")
    dropout: float = option(0.1, "dropout of the student while it trains (BERT: 0.1)")


@dataclass
class Training:
    """Options that every training stage has."""

    epochs: int = option(3, "passes over the rows")
    batch_size: int = option(32, "rows in a global batch, whatever the number of ranks")
    learning_rate: float = option(5e-5, "peak learning rate of AdamW")
    schedule: str = option("linear", "after warm-up: linear (down to 0) or constant")
    warmup: float = option(0.1, "share of all steps over which the rate rises from 0")
    weight_decay: float = option(0.01, "AdamW's decay; none on biases and LayerNorm (as the published code)")
    clip: float = option(1.0, "limit of the gradient's global norm")
    max_length: int = option(128, "tokens in a row; longer text is cut, and the share of it is said")
    evaluate_every: int = option(0, "steps between evaluations on dev; 0: at the end of each epoch")
    patience: int = option(0, "evaluations without a gain on dev after which the stage ends; 0: never")


@dataclass
class Tuning(Training):
    """Options of the teacher's own fine-tuning."""

    dropout: float = option(0.1, "dropout of the teacher while it is tuned (BERT: 0.1)")


@dataclass
class Distilling(Training):
    """Options of the stages that learn a teacher's layers."""

    layer_map: Any = option(
        "uniform", "uniform, last, first, or a list: the teacher layer of each student layer"
    )
    hidden_weight: float = option(1.0, "weight of the hidden-state loss, the embedding's included")
    attention_weight: float = option(1.0, "weight of the attention-score loss")
    projection: str = option("per_layer", "per_layer (paper, eq. 8 and 9) or shared (published code)")


@dataclass
class General(Distilling):
    """The general stage: layers of an un-tuned teacher, on unlabelled text."""

    tokens: int = option(0, "tokens of the corpus to use; 0: all")


@dataclass
class Pretraining(Training):
    """A recipe's student of unlabelled text."""

    mlm_probability: float = option(0.15, "share of the tokens that are masked (BERT: 0.15)")
    tokens: int = option(20_000_000, "tokens of the corpus to use; 0: all")


@dataclass
class MaskedLM(Pretraining):
    """Fitting a masked-LM head for augmentation and recipes, where the encoder has none."""

    seed: int = option(1, "a seed of its own, so that runs of several seeds share the head")


@dataclass
class Augmentation:
    """Variants of the training rows in which words are replaced (paper, Algorithm 1)."""

    p: float = option(0.4, "probability that a content word is replaced (paper: 0.4)")
    variants: int = option(20, "variants of each sentence, N (paper: 20)")
    candidates: int = option(15, "candidates asked for a word, K (paper: 15)")
    repredict: bool = option(
        False, "true: candidates after each replacement (paper); false: of the original once (published code)"
    )
    masked_lm: str = option("", "a masked language model: directory or hub name; none: the given teacher")
    vectors: str = option(
        "packaged", "word vectors for words of several pieces: packaged, a GloVe text file, or none"
    )
    masks_per_pass: int = option(1, "words masked at once; 1 is exact, more is faster (docs/augmentation.md)")
    min_distance: int = option(3, "tokens between two words masked at once, at least")
    seed: int = option(1, "a seed of its own, so that runs of several seeds share the rows (as published)")
    long_texts: str = option("keep", "texts too long for the masked LM: keep (as they are) or refuse")


@dataclass
class Prediction(Training):
    """The prediction stage: the teacher's answers."""

    temperature: float = option(1.0, "softmax temperature T of both sides (paper section 4.2: 1)")
    targets: str = option(
        "auto", "teacher, gold, or auto: teacher for classes, gold for scores (paper, STS-B)"
    )
    grid: dict = option(None, "values to try, the best on dev kept: grid={learning_rate: [1e-5, 3e-5]}")


@dataclass
class Baseline(Training):
    """The same student merely fine-tuned, for comparison."""

    grid: dict = option(None, "values to try, the best on dev kept: grid={learning_rate: [1e-4, 3e-4]}")


@dataclass
class Job:
    """How a stage runs. Nothing here makes a stage again, nor changes what is learned beyond rounding (and
    batches left out)."""

    nproc: int = option(1, "processes (ranks) on this host")
    hostfile: str = option("", "hosts to run on, DeepSpeed's hostfile (`name slots=N` a line)")
    zero: int = option(0, "DeepSpeed ZeRO stage, 0 to 3")
    precision: str = option("auto", "bf16, fp16, fp32; auto: bf16 where the processor multiplies it natively")
    micro_batch: Any = option(
        0, "rows a rank takes at once; 0: its whole share of the batch; auto: as many as its memory holds"
    )
    checkpoint_seconds: float = option(30.0, "most seconds of work an abrupt end may lose")
    skip_bad_batches: bool = option(False, "leave batches whose loss is not finite out, and say so")
    cache_gb: float = option(
        4.0,
        "disk on which a stage of several epochs keeps the teacher's layers, so that it runs once; 0: none",
    )
    keep: int = option(2, "newest checkpoints kept while a stage runs")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    monitor: str = option(
        "", "show these lines as curves too: tensorboard, wandb or csv, under the run's directory"
    )
    profile: bool = option(
        False, "wait for the GPU after each part of a step, to time them (the CPU always does)"
    )


TRAINING: dict[str, type[Training]] = {
    "teacher": Tuning,
    "general": General,
    "masked_lm": Pretraining,
    "pretrain": Pretraining,
    "intermediate": Distilling,
    "prediction": Prediction,
    "finetune": Baseline,
}
"""Stage type -> the type of its training options, where they are more than those that every stage has."""
