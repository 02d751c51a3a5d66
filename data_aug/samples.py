"""What augmentation did, for a reader: counts in a line, and sentences beside their variants."""

from pathlib import Path

from tabulate import tabulate

from data_aug.variants import Counts, read_shard

SAMPLES = 8
"""Sentences shown, each with up to two variants."""

COLUMN = 52
"""Characters in each of the two columns of samples."""


def describe(counts: Counts) -> str:
    """Say what augmentation did, in one line."""
    rest = {
        "variants dropped because they are rows of dev or test": counts.barred,
        "sentences without variants because they are too long for the masked LM": counts.too_long,
    }
    return (
        f"{counts.variants:,} variants of {counts.sentences:,} sentences ({counts.variants_per_sentence:.1f} each); "
        f"words replaced: {counts.by_masked_lm:,} by the masked LM, {counts.by_vectors:,} by word vectors, "
        f"{f'{counts.by_synonyms:,} by synonyms, ' if counts.by_synonyms else ''}"
        f"{f'{counts.by_given:,} entities swapped, ' if counts.by_given else ''}{counts.unchanged:,} drawn but not replaced; {counts.duplicates:,} duplicates dropped"
        + "".join(f"; {what}: {count:,}" for what, count in rest.items() if count)
    )


def samples(artefact: Path) -> str:
    """Show sentences of the first shard and some of their variants, side by side."""
    texts_a, texts_b, _, rows, variants = read_shard(sorted(artefact.glob("rows-*.arrow"))[0])
    shown = []
    originals = [i for i, variant in enumerate(variants) if variant == 0 and variants[i + 1 : i + 2] == [1]]
    for i in originals[:: max(1, len(originals) // SAMPLES)][:SAMPLES]:
        for j in range(i + 1, min(i + 3, len(rows))):
            if rows[j] == rows[i]:
                side = texts_b if texts_b and texts_a[j] == texts_a[i] else texts_a
                shown.append((side[i], side[j]))
    return tabulate(shown, ["original", "variant"], maxcolwidths=COLUMN, disable_numparse=True)
