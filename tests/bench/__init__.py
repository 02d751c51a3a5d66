"""Measures: `make bench`, how cost grows, and how fast augmentation is (`tests.data_aug.speed`)."""
