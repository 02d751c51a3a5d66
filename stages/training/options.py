"""The options that stages read. Each is defined once: its name, type with limits, default, unit and source.

The limits are in the types, as `annotated_types` write them. `pipeline.config.schema` checks them.
"""

from copy import copy
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from typing_extensions import TypedDict

Positive = Annotated[int, Gt(0)]
NotNegative = Annotated[int, Ge(0)]
Rate = Annotated[float, Gt(0), Lt(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]
LayerMap = Literal["uniform", "last", "first"] | list[int]

PROJECTIONS_FILE = "projections.safetensors"
"""Beside a general student: the projections that it learned with."""


class Grid(TypedDict, total=False):
    """The values to try of some training options."""

    learning_rate: Annotated[list[Rate], MinLen(1)]
    batch_size: Annotated[list[Positive], MinLen(1)]
    epochs: Annotated[list[Positive], MinLen(1)]


def option(default: Any, help: str) -> Any:
    """A dataclass field with the line that `--help` shows. Each instance has its own copy of a list or dict."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Architecture:
    """The student's sizes; its kind of model is the teacher's. One that begins as the teacher's layers has the teacher's
    width, feed_forward and heads. One that is given keeps its own sizes; with `vocabulary` above 0 its tokens are
    exchanged for the task's."""

    layers: Positive = option(4, "transformer layers (TinyBERT4: 4, paper section 4.1)")
    width: Positive = option(312, "width of the hidden states d' (TinyBERT4: 312)")
    feed_forward: Positive = option(1200, "width of the feed-forward layers d'_i (TinyBERT4: 1200)")
    heads: Positive = option(12, "attention heads (TinyBERT4: 12)")
    dropout: Fraction = option(0.1, "dropout of the student in training (BERT: 0.1)")
    vocabulary: NotNegative = option(
        0,
        "maximum number of tokens: those of the teacher's that task and corpus use most; 0: all",
    )


@dataclass
class Training:
    """Options that every training stage has."""

    epochs: Positive = option(3, "passes over the rows")
    batch_size: Positive = option(32, "rows in a global batch, over all ranks")
    learning_rate: Rate = option(5e-5, "peak learning rate of AdamW")
    schedule: Literal["linear", "constant"] = option(
        "linear", "after warm-up: linear (down to 0) or constant"
    )
    warmup: Fraction = option(0.1, "fraction of the steps in which the learning rate rises from 0")
    weight_decay: Annotated[float, Ge(0)] = option(
        0.01, "AdamW's decay; none on biases and LayerNorm (as the published code)"
    )
    clip: Annotated[float, Gt(0)] = option(1.0, "maximum global norm of the gradient")
    max_length: Annotated[int, Ge(8)] = option(
        128, "maximum sequence length in tokens; longer inputs are truncated and counted"
    )
    evaluate_every: NotNegative = option(0, "steps between evaluations on dev; 0: at the end of each epoch")
    patience: NotNegative = option(0, "evaluations without a gain on dev before the stage ends; 0: no limit")


@dataclass
class Tuning(Training):
    """Fine-tuning of the teacher on the task."""

    epochs: NotNegative = option(
        3, "passes over the rows; 0 (no training) only in recipes that read sentence vectors"
    )
    dropout: Fraction = option(0.1, "dropout of the teacher while it is fine-tuned (BERT: 0.1)")


@dataclass
class Distilling(Training):
    """A stage in which the student learns the teacher's layers."""

    layer_map: LayerMap = option(
        "uniform",
        "the teacher layer of each student layer: uniform, last, first, or a list such as [2, 4, 6]",
    )
    hidden_weight: float = option(1.0, "weight of the hidden-state and embedding losses")
    attention_weight: float = option(1.0, "weight of the attention-score loss")
    projection: Literal["per_layer", "shared"] = option(
        "per_layer", "projection of hidden states: per_layer (paper, eq. 8 and 9) or shared (published code)"
    )


@dataclass
class Intermediate(Distilling):
    """The intermediate stage: the student learns the layers of the tuned teacher on the task's text."""

    projection_init: Literal["random", "general"] = option(
        "random",
        "projections begin random, or general: as those of the general stage (published code)",
    )


@dataclass
class General(Distilling):
    """General distillation: the student learns the layers of the un-tuned teacher on unlabelled text."""

    tokens: NotNegative = option(0, "tokens of the corpus to use; 0: all")
    init: Literal["random", "teacher-embeddings", "teacher-layers"] = option(
        "random",
        "the student begins: random (paper), teacher-embeddings (reduced to its width), teacher-layers",
    )
    evaluate_every: NotNegative = option(0, "must be 0: this stage has no dev rows")
    patience: NotNegative = option(0, "must be 0: this stage has no dev rows")


@dataclass
class Learning(Training):
    """How a recipe's student learns from rows of a task."""

    epochs: NotNegative = option(
        3, "passes over the rows; 0 (no training) only in recipes that read sentence vectors"
    )


@dataclass
class Pretraining(Training):
    """Training on unlabelled text."""

    mlm_probability: Fraction = option(0.15, "probability that a token is masked (BERT: 0.15)")
    tokens: NotNegative = option(20_000_000, "tokens of the corpus to use; 0: all")


@dataclass
class LearningText(Pretraining):
    """How a recipe's student learns from unlabelled text (data: corpus, or another corpus), beside the lines above."""

    sentences: bool = option(False, "a row is one sentence of a document, instead of two segments of it")


@dataclass
class MaskedLM(Pretraining):
    """Training of a masked-LM head for augmentation and recipes, if the encoder has none."""

    mlm_probability: Rate = option(0.15, "probability that a token is masked (BERT: 0.15)")
    seed: NotNegative = option(1, "seed of this stage alone, so that runs of several seeds share the head")
    evaluate_every: NotNegative = option(0, "must be 0: this stage has no dev rows")
    patience: NotNegative = option(0, "must be 0: this stage has no dev rows")


@dataclass
class Augmentation:
    """Variants of the training rows with words replaced (paper, Algorithm 1)."""

    p: Annotated[float, Ge(0), Le(1)] = option(
        0.4, "probability that a content word is replaced (paper: 0.4)"
    )
    variants: Positive = option(20, "variants of each sentence, N (paper: 20)")
    candidates: Positive = option(15, "candidates for each word, K (paper: 15)")
    repredict: bool = option(
        False, "predict candidates again after each replacement (paper), not once (published code)"
    )
    masked_lm: str = option(
        "", "masked language model: directory or hub name; if left out: the given teacher"
    )
    vectors: str = option(
        "packaged", "word vectors for words of several tokens: packaged, a GloVe text file, or none"
    )
    language: str = option(
        "english", "language of the texts; its stop words are never replaced (not English: from nltk's data)"
    )
    synonyms: Literal["none", "wordnet"] = option(
        "none", "none; or wordnet: a word's synonyms as further candidates (nltk, English)"
    )
    nltk_download: bool = option(False, "fetch nltk's data where this machine has none")
    entities: Literal["keep", "swap"] = option(
        "keep",
        "entities of the text: keep, or swap for others of their kind and length from the training rows",
    )
    masks_per_pass: Positive = option(
        1, "words masked in one forward pass; 1 is exact, more is faster (docs/augmentation.md)"
    )
    min_distance: Positive = option(3, "minimum number of tokens between two words masked in one pass")
    seed: NotNegative = option(
        1, "seed of this stage alone, so that runs of several seeds share the rows (as published)"
    )
    long_texts: Literal["keep", "refuse"] = option(
        "keep", "texts too long for the masked LM: keep (unchanged) or refuse"
    )


@dataclass
class Answers:
    """A teacher that is a table of answers to texts (teacher=answers.jsonl; docs/answers.md)."""

    encoder: str = option(
        "packaged", "second teacher, tuned on the answers, for its layers: packaged, a directory or hub name"
    )
    leave_out: Fraction = option(
        0.0,
        "fraction of the answers that the encoder's predictions replace: those that differ most from them",
    )
    weight: Literal["one", "agreement"] = option(
        "one",
        "weight of an answer beside the encoder's prediction: one, or agreement (1 - their distance)",
    )
    folds: Annotated[int, Ge(0), Le(20)] = option(
        0,
        "folds of the answers, each judged by an encoder tuned on the others; 0: one encoder, tuned on all",
    )


@dataclass
class Prediction(Training):
    """The prediction stage: the student learns the teacher's predictions."""

    temperature: Annotated[float, Gt(0)] = option(
        1.0, "softmax temperature T of student and teacher (paper section 4.2: 1)"
    )
    targets: Literal["auto", "teacher", "gold"] = option(
        "auto", "teacher, gold, or auto: teacher for classes, gold for regression (paper, STS-B)"
    )
    grid: Grid | None = option(None, "values to try; the best on dev is kept: {learning_rate: [1e-5, 3e-5]}")


@dataclass
class Baseline(Training):
    """Baseline: the same student, fine-tuned without a teacher."""

    grid: Grid | None = option(None, "values to try; the best on dev is kept: {learning_rate: [1e-4, 3e-4]}")


@dataclass
class Job:
    """How a stage runs. These options change what is learned only by rounding, dropout's random numbers (ranks,
    micro-batch, compile) and skipped batches. No finished stage runs again because one of them changed. The exception
    is a DeepSpeed config that has gradients reduced in 16 bits: then trained stages run again."""

    nproc: Positive = option(1, "processes (ranks) on this host")
    hostfile: str = option("", "hosts to run on, as a DeepSpeed hostfile (`name slots=N` a line)")
    workers: NotNegative = option(
        0, "processes of each rank that tokenize; 0: one for each core that the rank may use"
    )
    zero: Annotated[int, Ge(0), Le(3)] = option(0, "DeepSpeed ZeRO stage, 0 to 3")
    deepspeed: str = option(
        "", "a DeepSpeed config (JSON) with details of ZeRO, offload and communication (docs/multi-gpu.md)"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "auto", "bf16, fp16, fp32; auto: bf16 where it is fast, else fp16 on a GPU without ZeRO, else fp32"
    )
    compile: Literal["auto", "on", "off"] = option(
        "off",
        "torch.compile student and losses; auto: in long stages of few shapes on a GPU (docs/speed.md)",
    )
    micro_batch: Literal["auto"] | NotNegative = option(
        0, "micro-batch size per rank in rows; 0: no accumulation; auto: halved until it fits"
    )
    checkpoint_seconds: Annotated[float, Ge(0)] = option(
        120.0,
        "seconds between checkpoints, at most; the first comes after 15, and each interval is twice the last",
    )
    skip_bad_batches: bool = option(False, "skip batches with a non-finite loss, and report them")
    cache_gb: Literal["auto"] | Annotated[float, Ge(0)] = option(
        "auto",
        "on a CPU: GB of disk for the teacher's layers, so it runs once; auto: half of what is free; 0: none",
    )
    keep: Positive = option(2, "number of newest checkpoints to keep while a stage runs")
    log_every: Positive = option(10, "steps between lines of metrics.jsonl")
    monitor: Literal["", "tensorboard", "wandb", "csv"] = option(
        "", "also log to tensorboard, wandb or csv, under the run's directory"
    )
    profile: bool = option(
        False, "on a GPU, time each part of a step, which adds synchronization; on a CPU this is always done"
    )


TRAINING: dict[str, type[Training]] = {
    "teacher": Tuning,
    "general": General,
    "masked_lm": Pretraining,
    "pretrain": LearningText,
    "intermediate": Intermediate,
    "prediction": Prediction,
    "finetune": Baseline,
}
"""Stage type -> the type of its training options, where they are more than those that every stage has."""


@dataclass
class StageToCheck:
    """What the stage `check` looks at of a training stage, before any work.

    Attributes:
        trains: teacher or student.
        reads_teacher: whether the student's losses read the teacher; of a recipe's student its losses tell.
        data: "task", or the name of a corpus or of another task ("task NAME") among the inputs.
        max_length, epochs, batch_size, tokens, patience: those of its training options.
        layer_map: the layer map of its losses on layers; None where it has none.
        mlm_probability: None where it trains no masked language model.
        sentences: whether its rows are single sentences of a corpus.
        variants: number of variants of each row, where it reads augmented rows.
        targets: whose predictions it learns: teacher, gold or auto.
        student: the sizes of a recipe's student; empty where it begins as the given one.
        losses, method, reads, with_unlabelled, mixing: those of a recipe's student.
        reads_others: those of `reads` that learned another task.
        methods_read: student in `reads` -> its method.
        layers_read: the same -> its number of layers; 0: as many as the teacher, None: as many as the given student.
        begins_as: the method that made what it begins as; plain where none did.
        ranks: number of ranks of the run on one host. `check` sets it, for it runs on one rank itself.
    """

    trains: Literal["teacher", "student"]
    data: str
    max_length: int
    epochs: int
    batch_size: int
    reads_teacher: bool = False
    tokens: int = 0
    patience: int = 0
    layer_map: Any = None
    mlm_probability: float | None = None
    sentences: bool = False
    variants: int = 0
    targets: str = "teacher"
    student: dict[str, Any] | None = None
    losses: list[Any] | None = None
    method: str | dict[str, Any] = "plain"
    reads: list[str] = field(default_factory=list)
    reads_others: list[str] = field(default_factory=list)
    methods_read: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    layers_read: dict[str, int | None] = field(default_factory=dict)
    begins_as: str | dict[str, Any] = "plain"
    ranks: int = 1
    with_unlabelled: bool = False
    mixing: dict[str, float] | None = None

    @classmethod
    def of(
        cls, trains: Literal["teacher", "student"], data: str, training: Training, **own: Any
    ) -> "StageToCheck":
        """What is looked at of a stage with these training options; `own` are the other attributes."""
        names = {entry.name for entry in fields(cls)}
        return cls(trains, data, **{k: v for k, v in asdict(training).items() if k in names}, **own)

    @property
    def learns_task(self) -> bool:
        """Whether it learns a task, not a corpus."""
        return self.data.partition(" ")[0] == "task"
