"""The plain containers that travel between the parts of jaxneg.

Shape letters: S seeds, B batch, L sequence length, N candidates, K kept, V items (ids 1..V; 0 is the pad),
D width, C cases, Q distinct histories, H history, U users, E users that can be trained on, T rows.
`#X` is 1 or X: one set of negatives per position ([B, L, N]), per sequence ([B, 1, N]) or per batch ([1, 1, N]).
NamedTuples are pytrees, so all of them pass through jit, vmap and scan unchanged.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Window(NamedTuple):
    """What is drawn for a batch, before it is told what to learn from it: M items of each row, left-padded with 0."""

    items: Int[Array, "B M"]
    history: Int[Array, "B H"]  # the user's distinct training items, ascending, padded with V + 1
    history_length: Int[Array, "B"]
    users: Int[Array, "B"]  # rows of a user table: 1 + the user's number
    times: Int[Array, "B M"] | None = None  # seconds, where the model needs them


class Batch(NamedTuple):
    """One mini-batch of training sequences, left-padded with 0."""

    inputs: Int[Array, "B L"]
    targets: Int[Array, "B L"]  # what is to be found at each position; 0: nothing
    history: Int[Array, "B H"]  # as in Window, and so are the others
    history_length: Int[Array, "B"]
    users: Int[Array, "B"] | None = None
    times: Int[Array, "B M"] | None = None


class Candidates(NamedTuple):
    """Items proposed as negatives, before any score is known."""

    item_ids: Int[Array, "#B #L N"]
    log_q: Float[Array, "#B #L N"]  # log probability with which the proposal draws this item, here
    mask: Bool[Array, "#B #L N"]  # False: not a negative (pool exhausted, or an item of the user's)


class Negatives(NamedTuple):
    """Candidates with the model's scores: what a selector thins out and a loss consumes."""

    item_ids: Int[Array, "#B #L N"]
    scores: Float[Array, "B L N"]
    log_q: Float[Array, "#B #L N"]
    mask: Bool[Array, "#B #L N"]


class Dataset(NamedTuple):
    """The training data on the device, users' rows one after another."""

    items: Int[Array, "T"]  # by user, then time; train, validation and test rows
    user_start: Int[Array, "U"]  # index of user u's first row
    train_end: Int[Array, "U"]  # one past user u's last training row
    train_users: Int[Array, "E"]  # users with two training rows or more
    history_items: Int[Array, "G"]  # users' distinct training items, ascending within each user
    history_start: Int[Array, "U"]  # user u's are history_items[history_start[u] : history_end[u]]
    history_end: Int[Array, "U"]
    # Where batch rows are interactions: training rows of those users before each of them, and of all, [E + 1].
    rows_before: Int[Array, "E1"] | None = None
    times: Int[Array, "T"] | None = None  # seconds since the first row of all, where the model needs them


class HistoryRows(NamedTuple):
    """What the histories of evaluation cases are windows of."""

    items: Int[Array, "T"]
    times: Int[Array, "T"] | None = None


class EvalCases(NamedTuple):
    """What is ranked: each case is one target, scored from one history, a window of `Dataset.items`."""

    history_start: Int[Array, "Q"]  # the history is items[history_start : history_end]
    history_end: Int[Array, "Q"]
    history_of_case: Int[Array, "C"]  # index in 0..Q-1
    targets: Int[Array, "C"]
    users: Int[Array, "C"]
    history_user: Int[Array, "Q"] | None = None  # its user, as a row of a user table; 0: one that was not trained on
    asked_time: Int[Array, "Q"] | None = None  # when it is asked what follows: that of the history's first case
