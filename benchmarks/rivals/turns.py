"""How the process of one library talks with the script that compares them: one line each way.

The first line in is the settings as JSON. Then each of "train SECONDS", "evaluate" and "end" asks for one turn, and is
answered by one line of JSON. Between turns the process sleeps, so that the others can be timed. Standard library only.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any


class Finished(Exception):
    """No more training is asked for: for libraries whose loop has no other end."""


class Turns:
    """Counts the steps of a training loop that the library itself runs, and holds it up between turns."""

    def __init__(self):
        # What the library prints goes to stderr: stdout is for the answers.
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.settings = json.loads(sys.stdin.readline())
        self.about: dict[str, Any] = {}
        self._warm_up_left = self.settings["warm_up_steps"]
        self._last_line: list[str] = []

    def describe(self, packages: list[str], negatives: list[int], drawn: str, threads: int | None = None) -> None:
        """What the first answer tells: versions, the shape of the negatives of a real batch, and who shares them."""
        versions = {name: metadata.version(name) for name in packages}
        self.about = {"versions": versions, "negatives": negatives, "drawn": drawn, "threads": threads}

    def stepped(self, steps: int, sequences: int, loss: float) -> bool:
        """To be called after each step, or after several in one program. False: no more training is asked for.

        The clock of a turn runs from one call to a later one: it includes all that the loop does between steps.
        """
        if self._warm_up_left > 0:
            self._warm_up_left -= steps
            return self._warm_up_left > 0 or self._next_turn(self.about)
        self._steps, self._sequences, self._loss = self._steps + steps, self._sequences + sequences, self._loss + loss
        seconds = time.perf_counter() - self._start
        if seconds < self._turn_seconds:
            return True
        return self._next_turn({"seconds": seconds, "sequences": self._sequences, "loss": self._loss / self._steps})

    def _next_turn(self, answer: dict[str, Any]) -> bool:
        self._last_line = self._ask(answer)
        if self._last_line[0] != "train":
            return False
        self._turn_seconds = float(self._last_line[1])
        self._steps, self._sequences, self._loss = 0, 0, 0.0
        self._start = time.perf_counter()
        return True

    def evaluate(self, recommend: Callable[[], int]) -> None:
        """Answers each "evaluate" with the time of one call; `recommend` returns the number of users."""
        line = self._last_line
        while line[0] == "evaluate":
            start = time.perf_counter()
            users = recommend()
            line = self._ask({"seconds": time.perf_counter() - start, "users": users})

    def _ask(self, answer: dict[str, Any]) -> list[str]:
        print(json.dumps(answer), file=self._answers, flush=True)
        return sys.stdin.readline().split() or ["end"]
