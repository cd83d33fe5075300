"""Which trial of a study is the best one: the front, and the choice of one trial of it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raffm_ray.studies.checked_study import Goal
from raffm_ray.studies.trial import HELD_OUT

Values = Mapping[int, Sequence[float]]
"""Trial -> its values, one for each objective."""


class Choice(NamedTuple):
    """The chosen trial, the rule in words, and the trials of the front that keep enough of the best metric."""

    best: int
    rule: str
    enough: Sequence[int]


def front_of(values: Values, higher: Sequence[bool]) -> list[int]:
    """Trials that no other is at least as good as in every objective and better in one, in ascending order."""
    signed = {number: [v if up else -v for v, up in zip(own, higher, strict=True)] for number, own in values.items()}

    def beaten(own: list[float]) -> bool:
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in signed.values())

    return sorted(number for number, own in signed.items() if not beaten(own))


def nearest(values: Values, higher: Sequence[bool]) -> int:
    """The trial that is nearest to the best value of every objective (Euclidean distance, each objective scaled to these trials' range);
    the first of several."""
    columns = list(zip(*values.values(), strict=True))
    ideal = [max(column) if up else min(column) for column, up in zip(columns, higher, strict=True)]
    ranges = [(max(column) - min(column)) or 1.0 for column in columns]

    def distance(number: int) -> float:
        return float(sum(((v - best) / span) ** 2 for v, best, span in zip(values[number], ideal, ranges, strict=True)))

    return min(sorted(values), key=distance)


def keeps(value: float, best: float, higher: bool, share: float) -> bool:
    """Whether a metric is at least `share` of the best one, or where less is better, at most 1 / `share` of it. Always true of the best
    itself; where the best is negative, of nothing else."""
    if value == best:
        return True
    return value >= share * best if higher else share * value <= best


def choose(front: Values, goals: Sequence[Goal], share: float) -> Choice:
    """The best trial of a front: among those with at least `share` of the best value of the first objective that is a metric, the one
    that is best in the other objectives. Of several others it is the `nearest`, as it is of all where no objective is a metric.

    `front`: not empty; values in the order of `goals`.
    """
    higher = [goal.higher for goal in goals]
    if len(goals) == 1:
        best = (max if higher[0] else min)(sorted(front), key=lambda number: front[number][0])
        return Choice(best, "the trial with the best value", [best])
    lead = next((position for position, goal in enumerate(goals) if goal.measure in HELD_OUT), None)
    if lead is None:
        return Choice(
            nearest(front, higher), "of the front, the trial nearest to the best value of every objective", sorted(front)
        )
    best_value = (max if higher[lead] else min)(own[lead] for own in front.values())
    enough = sorted(number for number, own in front.items() if keeps(own[lead], best_value, higher[lead], share))
    others = [position for position in range(len(goals)) if position != lead]
    left = {number: [front[number][position] for position in others] for number in enough}
    named = goals[others[0]].measure if len(others) == 1 else "every other objective"
    told = f"the best {named}" if len(others) == 1 else f"nearest to the best value of {named}"
    bound = f"at least {share:.4g}" if higher[lead] else f"at most 1/{share:.4g}"
    rule = f"of the front's trials with {bound} of the best {goals[lead].measure}, the one with {told}"
    return Choice(nearest(left, [higher[position] for position in others]), rule, enough)
