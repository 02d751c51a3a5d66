"""What a distillation loss is made of: views of models, layer maps, objectives, teachers, students."""
