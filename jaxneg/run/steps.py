"""A plan's training steps, some of them in each dispatch: what a run and a search for settings have in common."""

from typing import Any

import numpy as np

from jaxneg.errors import InputError
from jaxneg.run.programs import Plan, drawn_from
from jaxneg.training import step as training


class Feed:
    """What the steps from `first` on draw from, in their order; to be closed."""

    def __init__(self, plan: Plan, state: training.TrainState, first: int):
        self._sources = drawn_from(plan, state, first)
        self._end, self._source = first, None

    def at(self, step: int) -> tuple[Any, int]:
        """(what a step draws from, one past the last step that draws from the same); steps are asked for in order."""
        if step == self._end:
            self._end, self._source = next(self._sources)
        return self._source, self._end

    def close(self) -> None:
        self._sources.close()


def evaluation_epochs(config) -> list[int]:
    """Every `eval_every` epochs, and after the last one."""
    return sorted({*range(config.eval_every, config.num_epochs, config.eval_every), config.num_epochs})


def dispatch(
    plan: Plan, state: training.TrainState, feed: Feed, step: int, until: int, most: int
) -> tuple[training.TrainState, int]:
    """(the state, the step) after `most` steps from `step` on, or fewer: not beyond `until`, nor what the feed holds.

    With `debug`, raises InputError naming the operation whose result is not a number.
    """
    source, end = feed.at(step)
    count = min(most, until - step, end - step)
    try:
        return plan.programs.advance(np.int32(count), state, plan.tables, source), step + count
    except FloatingPointError as error:
        raise InputError(f"config.debug: {error}") from error
