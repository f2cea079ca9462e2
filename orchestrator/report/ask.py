"""What a report is asked, and how its metric is called."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl_core.checks import check_fields
from fl_core.errors import ConfigError
from scenarios.evaluate import OWN
from scenarios.scored import TITLES, Headline, headline_of

METRIC_NAMES = {
    "personal": "mean {} of the clients' models on their own test data",
    "global": "{} of the shared model on the whole test split",
}


@dataclass(frozen=True)
class Ask:
    """What a report is asked.

    budgets: in megabytes per client, both ways. target: of the metric; None takes one that every
    method reaches.
    """

    metric: str = OWN
    budgets: tuple[float, ...] = (0.25, 1.0, 4.0)
    target: float | None = None

    def __post_init__(self) -> None:
        faults = []
        try:
            check_fields(self, target="from 0 to 1")
        except ConfigError as error:
            faults += error.faults
        if not self.budgets or not all(0 < budget < math.inf for budget in self.budgets):
            faults.append(
                f"budgets = {self.budgets} is not allowed: name megabytes per client above 0, such "
                "as 0.25,1,4."
            )
        if faults:
            raise ConfigError(faults)

    @property
    def what(self) -> str:
        part = self.metric.removeprefix("eval/").removesuffix(f"/{self.headline}")
        told = METRIC_NAMES.get(part)
        return self.metric if told is None else told.format(self.word)

    @property
    def headline(self) -> Headline:
        return headline_of(self.metric)

    @property
    def word(self) -> str:
        """What the metric is one of: accuracy, exact match or ROUGE-L."""
        return TITLES[self.headline]
