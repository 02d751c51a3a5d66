"""Students: an architecture, how its weights begin, and kinds that transformers does not have."""
