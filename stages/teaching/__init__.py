"""What the stages of distillation share: given models that fit, their teacher, what a stage costs, the student they save."""
