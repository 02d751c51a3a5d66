"""What the stages of distillation share: their teacher, live, cached or recorded, and the student they save."""
