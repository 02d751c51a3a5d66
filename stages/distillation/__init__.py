"""What a distillation loss is made of: views of models, layer maps, losses, teachers, students."""
