"""What a distillation loss is made of: captured outputs, losses, layer maps, schedules, teachers and students."""

from stages.distillation.outputs import CaptureSpec, ModelOutputs, capture

__all__ = ["CaptureSpec", "ModelOutputs", "capture"]
