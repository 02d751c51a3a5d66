"""Readers: one module for each format or collection that tasks are read from.

To add one, write a module here with two functions, and add it to `READERS` in `stages.tasks.task`:

    def find(request: TaskRequest) -> TaskSource | None:
        '''Say where the task is, without reading its rows; None if the name or the data are not this reader's.'''

    def load(source: TaskSource, revision: str | None) -> Task:
        '''Read the rows. `revision` pins a hub data set.'''

`find` runs while a run is planned: it imports nothing heavy, and refuses what cannot be used with a `UserError`. All
that decides the rows stands in the `TaskSource` (`stages.tasks.types`). `rotten_tomatoes` is the shortest example.
"""
