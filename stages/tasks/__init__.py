"""Tasks and corpora: where the rows come from, how they become batches, and how answers are scored."""
