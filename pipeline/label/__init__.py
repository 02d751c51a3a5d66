"""Asks a language model's endpoint for the labels of texts (the command `label`)."""
