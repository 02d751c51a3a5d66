"""A line of the table of faults."""

from collections import Counter
from dataclasses import dataclass, field

HEAD = """\
| what was done | where | times | all processes ended within | exit status of the command | processes left | lost after the resume |
|---|---|---|---|---|---|---|"""


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        times: how often it was tried, by stage.
        seconds: from the fault to the end of the command and its workers, the longest.
        statuses: exit statuses of the command.
        survivors: processes that were still there a minute later.
        lost: what the resumed run lacks, or does not say.
    """

    fault: str
    where: str
    times: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    statuses: Counter = field(default_factory=Counter)
    survivors: int = 0
    lost: str = "nothing"

    def line(self) -> str:
        stages = f"{len(self.times)} stages, " if len(self.times) > 1 else ""
        ends = [f"{code} ({count} times)" for code, count in self.statuses.most_common()]
        status = ", ".join(ends) if len(ends) > 1 else next(iter(self.statuses), "")
        cells = [
            self.fault, f"{stages}{self.where}", self.times.total(), f"{self.seconds:.1f} s", status,
            self.survivors or "none", self.lost,
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"
