"""Readers: one module for each collection or layout of files that tasks are read from.

To add one, write a module here with two functions, and add it to `READERS` below:

    def find(request: TaskRequest) -> TaskSource | None:
        '''Say where the task is, without reading its rows; None if the name or the data are not this reader's.'''

    def load(source: TaskSource, revision: str | None) -> Task:
        '''Read the rows. `revision` pins a hub data set.'''

`find` runs while a run is planned: it imports nothing heavy. Both refuse what cannot be used with a `UserError`: `find` a
package or file that is missing and options that do not fit, `load` a row (it names file and line), too few classes, a
class that train lacks. All that decides the rows stands in the `TaskSource` (`stages.tasks.types`). `rotten_tomatoes` is the shortest example. A new
format of tables (such as parquet) is a function in `stages.tasks.tables`, which `files` reads through.
"""

from stages.tasks.readers import (
    answers,
    chatterbot,
    conll,
    files,
    glue,
    graphs,
    idx,
    image_tables,
    images,
    indonesian,
    newsgroups,
    questions,
    rotten_tomatoes,
    scenes,
    spans,
    strips,
)

READERS = {
    reader.__name__.rpartition(".")[2]: reader
    for reader in (glue, rotten_tomatoes, newsgroups, indonesian, chatterbot, idx, image_tables, images, graphs, scenes,
                   strips, spans, conll, questions, files, answers)
}  # fmt: skip
"""Every reader. They are asked in this order whether a task is theirs."""
