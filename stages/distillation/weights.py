"""Compares a model's weights with its files: transformers draws missing weights at random and does not say so."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

SHOWN = 3
"""Names in a message."""

USUAL_HEADS = frozenset(
    "classifier cls decoder discriminator_predictions generator_lm_head generator_predictions head lm_head lm_loss pooler "
    "pre_classifier predictions projector qa_outputs score vocab_layer_norm vocab_projector vocab_transform".split()
)
"""Parts of published weights that an encoder, or a classifier that was made from one, does without."""


@dataclass(frozen=True)
class Arrived:
    """How a model's weights and its files differ, as transformers reports it.

    Attributes:
        model: as it was loaded.
        missing: names in the model alone.
        unexpected: names in the files alone, but of no buffer.
        reshaped: name -> shape in the files, shape in the model.
    """

    model: PreTrainedModel
    missing: set[str]
    unexpected: set[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def of(cls, model: PreTrainedModel, info: dict[str, Any]) -> "Arrived":
        """Read what `from_pretrained` returned with `output_loading_info=True`.

        Buffers that the model computes itself, such as position ids, are in files that an older transformers wrote.
        """
        prefix = f"{model.base_model_prefix}."
        computed = {name.removeprefix(prefix) for name, _ in model.named_buffers()}
        unexpected = {name for name in info["unexpected_keys"] if name.removeprefix(prefix) not in computed}
        reshaped = {name: (tuple(there), tuple(wanted)) for name, there, wanted in info["mismatched_keys"]}
        return cls(model, set(info["missing_keys"]), unexpected, reshaped)

    def faults(self, own_head: bool) -> str:
        """Name the differences that are faults; empty if there are none.

        The encoder must be whole, and hold all of its weights in the files. A pooler or a head may be new.

        Args:
            own_head: the head must be there, too.
        """
        lacking = self.missing if own_head else filter(self._is_encoders, self.missing)
        parts = {
            "missing": lacking,
            "that the model has no place for": filter(self._is_encoders, self.unexpected),
            "of another shape": [
                f"{name} {there} instead of {wanted}"
                for name, (there, wanted) in self.reshaped.items()
                if own_head or self._is_encoders(name)
            ],
        }
        found = {what: sorted(names) for what, names in parts.items()}
        return ", ".join(f"{len(names)} {what} ({_few(names)})" for what, names in found.items() if names)

    @property
    def dropped_head(self) -> str:
        """Names and shapes of the head in the files, if it is not the model's; else empty."""
        heads = [name for name in self.reshaped if not self._is_encoders(name)]
        return _few(
            f"{name} {self.reshaped[name][0]} instead of {self.reshaped[name][1]}" for name in sorted(heads)
        )

    @property
    def left_out(self) -> str:
        """Parts in the files that neither the encoder nor a usual head has, such as a custom head; empty if there are none."""
        firsts = {self._plain(name).partition(".")[0] for name in self.unexpected}
        others = sorted(
            first for first in firsts if first not in USUAL_HEADS and not self._is_encoders(first)
        )
        return _few(f"{first}.*" for first in others)

    @property
    def prefix(self) -> str:
        """Find the prefix of a wrapper, without which the names in the files are the encoder's; empty if there is none."""
        wanted = {self._plain(name) for name in filter(self._is_encoders, self.missing)}
        parts = [name.split(".") for name in self.unexpected]
        prefixes = {".".join(part[:n]) + "." for part in parts for n in range(1, min(len(part), 5))}
        for prefix in sorted(prefixes, key=len):
            given = {
                self._plain(name.removeprefix(prefix)) for name in self.unexpected if name.startswith(prefix)
            }
            if wanted and wanted <= given:
                return prefix
        return ""

    def _plain(self, name: str) -> str:
        return name.removeprefix(f"{self.model.base_model_prefix}.")

    def _is_encoders(self, name: str) -> bool:
        first = self._plain(name).partition(".")[0]
        return first != "pooler" and first in dict(self.model.base_model.named_children())


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
