"""A line of the table of faults."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        times: how often it was tried, by stage.
        seconds: from the fault to the end of the command and its workers, the longest.
        statuses: exit statuses of the command.
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
        ends = ", ".join(f"{code}: {count}" for code, count in self.statuses.most_common(3))
        happened = f"ended within {self.seconds:.1f} s (status {ends}), {self.survivors} survivors; went on"
        return f"| {self.fault} | {stages}{self.where} | {self.times.total()} | {happened} | {self.lost} |"
