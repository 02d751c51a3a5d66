"""Makes this package's models known to transformers, which then loads them as its own."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForZeroShotImageClassification,
)

AUTO: dict[str, Any] = {
    "": AutoModel,
    "CTC": AutoModelForCTC,
    "MaskedLM": AutoModelForMaskedLM,
    "QuestionAnswering": AutoModelForQuestionAnswering,
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
    "ZeroShotImageClassification": AutoModelForZeroShotImageClassification,
}


def register(*models: Any) -> None:
    """Let transformers load models by their configs. What a model answers stands in its class's name, after "For"."""
    for model in models:
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AUTO[model.__name__.partition("For")[2]].register(config, model)
