"""When a call counts as hung: after much more time than its cost predicts. It does not use Ray."""

SLOWEST = 1e-8
"""Seconds a unit of cost (a FLOP) that are expected before any call of its kind has ended: slower than any device that is known."""
SLACK = 10.0
"""How much longer than predicted a call may take: other work on the machine, larger ones beyond its caches."""


class CallTimeout:
    """What calls took for their cost, by kind, and what that predicts of the next ones.

    `patience_seconds`: how long any call may take beyond SLACK x what is predicted.
    """

    def __init__(self, patience_seconds: float) -> None:
        self.patience_seconds = patience_seconds
        self._slowest: dict[str, float] = {}

    def ended(self, kind: str, cost: float, seconds: float) -> None:
        """Notes a call that ended: its predictions are of the slowest one for its cost."""
        if cost > 0:
            self._slowest[kind] = max(self._slowest.get(kind, 0.0), seconds / cost)

    def predicted_seconds(self, kind: str, cost: float) -> float:
        """Of a call: its cost x the slowest one's seconds a unit of cost, or SLOWEST while none of its kind has ended."""
        return cost * self._slowest.get(kind, SLOWEST)

    def limit_seconds(self, kind: str, cost: float) -> float:
        """After which a call is taken for hung."""
        return self.patience_seconds + SLACK * self.predicted_seconds(kind, cost)
