"""What one server connection still owes: the state of its conversation, in both directions.

The frontend scanner books every request that passes, the backend scanner strikes off what is answered; both do the
frequent cases in line. Here stand the theory, the state, and the rare cases.

Every Query, FunctionCall and Sync is answered by exactly one ReadyForQuery, except that (protocol documentation,
"Extended Query" and "COPY Operations")

  - after an error in an extended-protocol run the server skips everything up to the next Sync, so that a Query
    inside the skipped part is never answered;
  - while it reads copy data it ignores Sync and Flush, so that such a Sync is never answered; any message but
    CopyData, CopyDone and CopyFail ends the copy with an error and is itself never answered;
  - CopyData, CopyDone and CopyFail outside of a copy are ignored.

Whether such a case has come about is known only when the server's reply arrives, and by then more may have been
sent. So `owed` is a queue that keeps the order of what was sent, run-length encoded as ints:

    n >= 0          n extended requests (Parse, Bind, Describe, Execute, Close) and the Sync that closes their run
    OWED_QUERY      a Query or FunctionCall
    OWED_COPY_END   a CopyDone or CopyFail: it has no reply of its own, but decides which Syncs a copy swallows
    UNCLOSED - n    n extended requests with no Sync before what follows

and `run` counts the extended requests behind all of that. Each of them has one closing reply (1 2 3 n T C I s);
`answered` counts these since the last ReadyForQuery, which tells the request that an error belongs to.

An entry whose replies are not all passed on as they come is an edits.Unit, an int all the same; `edits` are those of
the open run. `edited` counts all edits that are not done yet: while it is 0, replies are passed on unseen.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final, final

from protocol.edits import Change, Edit, Op, Unit
from protocol.errors import ServerViolation
from protocol.kinds import IDLE
from protocol.statements import UNSURE, Statement
from protocol.unnamed import restore_unnamed

OWED_QUERY: Final = -1
OWED_COPY_END: Final = -2
UNCLOSED: Final = -16

UNKNOWN: Final = 0
"""The transaction state after an error that answers nothing: the server announces that it closes the connection."""

# What the server does with what is sent next.
NORMAL: Final = 0
SKIPPING: Final = 1  # an error in a run whose Sync has not been sent yet: everything but a Sync is ignored
COPYING_IN: Final = 2  # it reads copy data whose end has not been sent yet
EDITING: Final = 3  # as NORMAL, and the open run has edits


@final
class Exchange:
    """The state of one server connection's conversation. Scanners change it; sessions only read it."""

    __slots__ = (
        "answered",
        "changes",
        "doubt",
        "edited",
        "edits",
        "error_at",
        "errors",
        "first_parse",
        "held",
        "hidden_error",
        "hidden_queries",
        "in_block",
        "max_row",
        "mode",
        "on_parameter",
        "on_stale_plan",
        "on_statement_lost",
        "on_unnamed",
        "owed",
        "queries",
        "replies_head",
        "replies_rest",
        "requests_rest",
        "run",
        "status",
        "unnamed",
    )

    def __init__(self, max_row: int = 0xFFFFFFFF) -> None:
        """`max_row` is the length of the longest row or piece of copy data that the server may send, in bytes."""
        self.max_row = max_row
        self.owed: deque[int] = deque()
        self.run = 0
        """Extended requests sent since the last Sync. Never 0 while SKIPPING."""
        self.answered = 0
        """Closing replies received since the last ReadyForQuery."""
        self.mode = NORMAL
        self.status = IDLE
        """Transaction state in the last ReadyForQuery."""
        self.requests_rest = 0
        """Bytes missing of the request that is being streamed to the server."""
        self.replies_rest = 0
        """Bytes missing of the reply that is being streamed from the server."""
        self.replies_head = b""
        """The first bytes of a reply, too few to tell what it is (forwarded already)."""
        self.errors = 0
        """ErrorResponses seen so far."""
        self.queries = 0
        """ReadyForQuerys seen so far."""
        self.in_block = 0
        """Those among them that came inside of a transaction block, which went on."""
        self.hidden_queries = 0
        """Those that were for the pooler, of what owe_hidden_query() has booked."""
        self.error_at = -1
        """How many of them had been seen when the last ErrorResponse came."""
        self.held = b""
        """The first bytes of a reply that has to be whole before it can be passed on."""
        self.edits: list[Edit] = []
        """Edits of the open run, in the order of their requests; `mode` is EDITING as long as there are any."""
        self.changes: list[Change] = []
        """What the open run changes, likewise; `mode` says nothing of that."""
        self.edited = 0
        """How many edits are not done yet, hidden units counted as one each."""
        self.hidden_error: bytes | None = None
        """The payload of the last ErrorResponse in a hidden unit."""
        self.unnamed: Statement | None = None
        """What the server's unnamed statement is; None = it has none; UNSURE = what was to change that was skipped."""
        self.first_parse = -1
        """The value of `queries` when a Parse of it was sent as the first request of all that is owed."""
        self.doubt = -1
        """The highest value of `queries` with which one that was sent later may still be skipped."""
        self.on_unnamed: Callable[[Statement | None], None] = _ignore
        """Called with what the client's unnamed statement is, if that is not what the last request made it."""
        self.on_parameter: Callable[[bytes], None] = _ignore
        """Called with the payload of each ParameterStatus."""
        self.on_statement_lost: Callable[[], None] = _nothing
        """Called when the server turns out to lack a statement that the pooler has prepared on it."""
        self.on_stale_plan: Callable[[], None] = _nothing
        """Called when a prepared statement turns out to return something else than when it was parsed."""

    @property
    def quiet(self) -> bool:
        """At a message boundary both ways, nothing owed, nothing unsynced: a request of our own may be sent."""
        return not (self.owed or self.run or self.requests_rest or self.replies_rest or self.replies_head or self.held)

    @property
    def settled(self) -> bool:
        """Quiet, and in no transaction: free to be released."""
        return self.status == IDLE and self.quiet

    @property
    def transactions(self) -> int:
        """How many have ended so far; a query outside of a block is one."""
        return self.queries - self.in_block

    @property
    def unsynced(self) -> bool:
        """Extended requests have been sent that no Sync follows yet."""
        return bool(self.run or (self.owed and self.owed[-1] < OWED_QUERY))

    @property
    def error_unanswered(self) -> bool:
        """The last thing that the server has said is an error, with no ReadyForQuery after it."""
        return self.error_at == self.queries

    # --- the frontend scanner's rare cases

    def book_query(self) -> None:
        """Book a Query or FunctionCall that comes inside a run, a skipped run or a copy."""
        if self.mode == COPYING_IN:
            self.mode = NORMAL  # it ends the copy with an error that answers the COPY, and is not answered itself
        elif self.mode != SKIPPING:
            self._break_run()
            self.owed.append(OWED_QUERY)

    def book_sync(self) -> None:
        """Book a Sync that comes inside a skipped run, a copy, or a run with edits or changes."""
        if self.mode != COPYING_IN:
            self._close_run(self.run)

    def book_extended(self) -> None:
        """Book an extended request, in whatever mode."""
        if self.mode == COPYING_IN:
            self.mode = NORMAL  # as in book_query
        elif self.mode != SKIPPING:
            self.run += 1

    def book_copy_end(self) -> None:
        """Book a CopyDone or CopyFail."""
        if self.mode == COPYING_IN:
            self.mode = NORMAL
        elif self.mode != SKIPPING and (self.owed or self.run):
            # The COPY that it ends may be on its way still.
            self._break_run()
            self.owed.append(OWED_COPY_END)

    def _break_run(self) -> None:
        if self.run or self.edits or self.changes:
            self._close_run(UNCLOSED - self.run)

    def _close_run(self, entry: int) -> None:
        self.owed.append(Unit(entry, self.edits, self.changes) if self.edits or self.changes else entry)
        self.edits = []
        self.changes = []
        self.run = 0
        self.mode = NORMAL

    # --- edits

    @property
    def skipping(self) -> bool:
        """What is sent now is not carried out, as far as that is known: no edits."""
        return self.mode in (SKIPPING, COPYING_IN)

    def edit(
        self,
        op: Op,
        reply: bytes = b"",
        undo: Callable[[], object] | None = None,
        done: Callable[[], object] | None = None,
    ) -> None:
        """Note an edit for the extended request that is booked next; not while `skipping`."""
        self.edits.append(Edit(op, reply, undo, done, at=self.run))
        self.edited += 1
        self.mode = EDITING

    def mark_run(self) -> None:
        """Have the run that is open, though it may be empty, closed with its changes by whatever comes next."""
        self.mode = EDITING

    @property
    def entries(self) -> Iterator[int]:
        """What is owed, and the open run as if it were broken off here."""
        return chain(self.owed, (Unit(UNCLOSED - self.run, changes=self.changes),))

    def owe_edited_query(self, *edits: Edit) -> None:
        """Book a Query with edits; not while `skipping`."""
        self._break_run()
        self.owed.append(Unit(OWED_QUERY, [*edits]))
        self.edited += len(edits)

    def watch_replies(self) -> bool:
        """Have everything that is owed looked at when it is answered; False if nothing is."""
        self._strike_answered()
        if self.owed and not self.edited:
            last = self.owed.pop()
            unit = last if isinstance(last, Unit) else Unit(last)
            unit.edits.append(Edit(Op.LAST))
            self.owed.append(unit)
            self.edited += 1
        return bool(self.owed)

    def owe_hidden_query(self) -> None:
        """Book a Query of the pooler's own, at the beginning of a link."""
        self.owed.append(Unit(OWED_QUERY, hidden=True))
        self.edited += 1
        self.unnamed = None

    @property
    def hidden(self) -> bool:
        """What comes next is for the pooler."""
        owed = self.owed
        return bool(owed) and isinstance(owed[0], Unit) and owed[0].hidden

    @property
    def head_edits(self) -> list[Edit]:
        """The edits of the requests that are answered next."""
        if not self.owed:
            return self.edits
        head = self.owed[0]
        return head.edits if isinstance(head, Unit) else []

    def take_inserts(self) -> bytes:
        """Return what is to be told to the client now, in between what the server says; never within a reply."""
        told = b""
        while not (self.replies_rest or self.replies_head):
            due = [edit for edit in self.head_edits if edit.op is Op.INSERT and edit.at <= self.answered]
            for edit in due:
                self.done(edit)
                told += edit.reply
            if not self._head_answered:
                break
            self._strike_answered_head()
        return told

    def done(self, edit: Edit) -> None:
        """Strike off an edit of the requests that are answered next."""
        self.head_edits.remove(edit)
        self.edited -= 1
        if edit.done is not None:
            edit.done()

    def hold(self, data: bytes) -> None:
        """Keep the beginning of a reply until it is whole; counts as an edit."""
        self.edited += bool(data) - bool(self.held)
        self.held = data

    def finish_head(self) -> None:
        """A ReadyForQuery comes: the entry that it strikes off has no edits any more."""
        self._drop_edits(self.head_edits)
        self.edited -= self.hidden
        self.hidden_queries += self.hidden

    def _drop_edits(self, edits: list[Edit]) -> None:
        """What the requests were to bring about did not happen; the last first, in case one builds on another."""
        self.edited -= len(edits)
        while edits:
            undo = edits.pop().undo
            if undo is not None:
                undo()

    def _strike(self) -> int:
        entry = self.owed.popleft()
        if isinstance(entry, Unit):
            self._drop_edits(entry.edits)
            self.edited -= entry.hidden
        return entry

    def give_up(self) -> None:
        """The connection is lost: what was asked for and not answered counts as if it had not been carried out."""
        self._drop_edits(self.edits)
        while self.owed:
            entry = self.owed.pop()
            if isinstance(entry, Unit):
                self._drop_edits(entry.edits)

    # --- the backend scanner's rare cases

    def on_error(self) -> None:
        """Strike off what the server skips after an ErrorResponse."""
        self.errors += 1
        self.error_at = self.queries
        if self.mode == COPYING_IN:
            self.mode = NORMAL
        self._strike_answered()
        owed = self.owed
        if not owed or owed[0] != OWED_QUERY:
            restore_unnamed(self)
        if owed:
            if owed[0] > UNCLOSED:
                self._drop_edits(self.head_edits)
                return  # a Query, or a run with its own Sync: nothing is skipped but the rest of that run
            while owed and owed[0] < 0:
                self._strike()
            if owed:
                self._drop_edits(self.head_edits)
                return
            self.run += 1  # what was struck off still waits for its Sync
        self._drop_edits(self.edits)
        if self.run:
            self.mode = SKIPPING
        else:
            self.status = UNKNOWN

    def on_copy_in(self) -> None:
        """Strike off what the server swallows while it reads copy data, after a CopyInResponse."""
        self._strike_answered()
        owed = self.owed
        head = owed[0] if owed else UNCLOSED - self.run
        if self.edited:
            # Which requests the copy swallows, and with them whose edits, nobody wants to know: no driver does that.
            raise ServerViolation("a COPY FROM STDIN began ahead of requests that are not passed on as they are")
        self.unnamed = UNSURE
        if head == OWED_QUERY:
            self._swallow(1)
            return
        # The COPY is an Execute in the run at the head.
        requests = head if head >= 0 else UNCLOSED - head
        if self.answered + 1 < requests:
            return  # the next request of the run ends the copy with an error, and the run with it
        if not owed:
            self.mode = COPYING_IN
            return
        owed.popleft()
        self._swallow(0)
        # The Sync that closed the run, if any, was swallowed: the run goes on with what follows the copy's end.
        if not owed:
            self.run += requests
        elif owed[0] >= 0:
            owed[0] += requests
        elif owed[0] <= UNCLOSED:
            owed[0] -= requests
        else:
            owed.appendleft(UNCLOSED - requests)

    def on_ready(self, head: int) -> None:
        """Find what a ReadyForQuery answers where the popped entry `head` has no answer of its own.

        Raises ServerViolation if nothing sent is still to be answered.
        """
        owed = self.owed
        while head < OWED_QUERY:
            if not owed:
                raise ServerViolation("the server sent a ReadyForQuery that nobody had asked for")
            head = self._strike()

    def drop_stray_copy_ends(self) -> None:
        """Strike off copy ends that now, after a ReadyForQuery, stand in front: no copy is under way."""
        owed = self.owed
        while owed and owed[0] == OWED_COPY_END:
            owed.popleft()

    @property
    def _head_answered(self) -> bool:
        """The head is an unclosed run whose requests have all been answered, or a copy end behind one."""
        head = self.owed[0] if self.owed else 0
        return head == OWED_COPY_END or (head <= UNCLOSED and self.answered >= UNCLOSED - head)

    def _strike_answered(self) -> None:
        while self._head_answered:
            self._strike_answered_head()

    def _strike_answered_head(self) -> None:
        self.answered -= max(0, UNCLOSED - self.owed[0])
        self.first_parse = -1
        self._strike()

    def _swallow(self, index: int) -> None:
        """Strike off what a copy swallows from owed[index] on; if its end is not among that, it is COPYING_IN."""
        owed = self.owed
        while index < len(owed) and owed[index] == 0:
            del owed[index]  # a bare Sync
        if index < len(owed):
            # The end of the copy, or what ends it with an error: the Query, or the first request of the run.
            entry = owed[index]
            if entry in (OWED_QUERY, OWED_COPY_END, UNCLOSED - 1):
                del owed[index]
            else:
                owed[index] += -1 if entry > 0 else 1
        elif self.run:
            self.run -= 1
        else:
            self.mode = COPYING_IN


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass
