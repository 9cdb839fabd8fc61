"""Tokens become rows; the shapes are described in docs/data.md ("Rows of text").

A builder is fed pieces of documents in order, as arrays: `ids` of all of them, `counts` of each, and
`firsts`, whether a piece begins a document. What is not yet a whole row is carried to the next call,
so memory stays that of one call, and the rows do not depend on how the pieces were grouped.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Layout:
    length: int
    style: str
    special: dict
    pad: int

    @property
    def lead(self):
        """Column of a row's first token of text."""
        return 1 if self.style == "encoder" else 0

    @property
    def width(self):
        """Most tokens of a row that are not CLS and SEP around it."""
        return self.length - 2 * self.lead


def _segments(counts, firsts):
    """Tokens of each document in this call, and whether the first one goes on from the last call."""
    goes_on = not firsts[0]
    cuts = np.flatnonzero(firsts)
    cuts = np.concatenate([[0], cuts]) if goes_on else cuts
    return np.add.reduceat(counts, cuts), goes_on


def _offsets(counts):
    return np.cumsum(counts) - counts


class _Builder:
    def __init__(self, layout, tokens, lengths, documents):
        self.layout, self.tokens, self.lengths, self.documents = layout, tokens, lengths, documents
        self.carry = np.zeros(0, dtype=np.int64)
        self.rows = self.total = 0
        self.document_count = 0

    def _emit(self, ids, starts, counts):
        """Rows of `counts` tokens from `starts` on."""
        layout, lead = self.layout, self.layout.lead
        if not len(starts):
            return
        columns = np.arange(layout.width)
        inside = columns < counts[:, None]
        body = ids[np.minimum(starts[:, None] + columns, len(ids) - 1)]
        rows = np.full((len(starts), layout.length), layout.pad, dtype=np.int64)
        rows[:, lead:lead + layout.width] = np.where(inside, body, layout.pad)
        if layout.style == "encoder":
            rows[:, 0] = layout.special["cls"]
            rows[np.arange(len(rows)), counts + 1] = layout.special["sep"]
        lengths = counts + 2 * lead
        self.tokens.write(rows)
        self.lengths.write(lengths)
        self.rows += len(rows)
        self.total += int(lengths.sum())

    def _begin_documents(self, positions):
        self.documents.write(positions)
        self.document_count += len(positions)

    def _end(self):
        """One past the last token that is no padding."""
        if self.rows:
            last = self.total - self._before_last
            self.documents.write(np.array([(self.rows - 1) * self.layout.length + last]))


class SplitRows(_Builder):
    """A document begins a row."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.open = False          # a document is under way
        self.open_has_text = False
        self.carry_begins = False  # no row of it is out yet

    def add(self, ids, counts, firsts):
        if not len(counts):
            return
        counts, goes_on = _segments(counts, firsts)
        begins = np.ones(len(counts), dtype=bool)
        has_text = counts > 0
        if self.open and not goes_on:
            counts, begins = np.concatenate([[0], counts]), np.concatenate([[False], begins])
            has_text = np.concatenate([[False], has_text])
        if self.open:
            counts[0] += len(self.carry)
            begins[0], has_text[0] = self.carry_begins, has_text[0] or self.open_has_text
            ids = np.concatenate([self.carry, ids])
        self._rows(ids, counts, begins, has_text, closed=len(counts) - 1)

    def finish(self):
        if self.open:
            self._rows(self.carry, np.array([len(self.carry)]), np.array([self.carry_begins]),
                       np.array([self.open_has_text]), closed=1)
        self._end()

    def _rows(self, ids, counts, begins, has_text, closed):
        """Documents of `counts` tokens, of which the first `closed` are at their end."""
        width = self.layout.width
        done = np.arange(len(counts)) < closed
        if self.layout.style == "decoder":
            ends = done & has_text
            ids = np.insert(ids, np.cumsum(counts)[ends], self.layout.special["eos"])
            counts = counts + ends
        rows = np.where(done, -(-counts // width), counts // width)
        of_row = np.repeat(np.arange(len(counts)), rows)
        within = width * (np.arange(rows.sum()) - np.repeat(_offsets(rows), rows))
        first_row = self.rows + _offsets(rows)
        self._begin_documents(first_row[begins & (rows > 0)] * self.layout.length + self.layout.lead)
        in_row = np.minimum(width, counts[of_row] - within)
        if len(in_row):
            self._before_last = self.total + int((in_row[:-1] + 2 * self.layout.lead).sum())
        self._emit(ids, _offsets(counts)[of_row] + within, in_row)
        self.open = closed < len(counts)
        if self.open:
            self.carry = ids[len(ids) - counts[-1] + rows[-1] * width:]
            self.carry_begins = bool(begins[-1] and rows[-1] == 0)
            self.open_has_text = bool(has_text[-1])


class PackedRows(_Builder):
    """Documents follow each other without regard to rows."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.position = 0          # in the stream, of what comes next
        self.open_has_text = False
        self.carry = np.zeros(0, dtype=np.int64)

    def add(self, ids, counts, firsts):
        if not len(counts):
            return
        counts, goes_on = _segments(counts, firsts)
        counts = counts if goes_on else np.concatenate([[0], counts])
        has_text = counts > 0
        # Segment 0 is what is left of the document under way, if any.
        begins = has_text.copy()
        begins[0] = has_text[0] and not self.open_has_text
        has_text[0] |= self.open_has_text
        self._append(ids, counts, begins, has_text, closed=len(counts) - 1)
        self.open_has_text = bool(has_text[-1])

    def finish(self):
        self._append(np.zeros(0, dtype=np.int64), np.array([0]), np.array([False]),
                     np.array([self.open_has_text]), closed=1)
        if len(self.carry):
            self._cut(np.array([len(self.carry)]))
        self._end()

    def _append(self, ids, counts, begins, has_text, closed):
        special, starts = self.layout.special, _offsets(counts)
        if self.layout.style == "decoder":
            ends = (np.arange(len(counts)) < closed) & has_text
            ids = np.insert(ids, np.cumsum(counts)[ends], special["eos"])
            starts = starts + _offsets(ends.astype(np.int64))
        else:
            apart = begins & (self.position + starts > 0)
            ids = np.insert(ids, starts[apart], special["sep"])
            starts = starts + np.cumsum(apart)
        row, column = np.divmod(self.position + starts[begins], self.layout.width)
        self._begin_documents(row * self.layout.length + column + self.layout.lead)
        self.position += len(ids)
        self.carry = np.concatenate([self.carry, ids])
        self._cut(np.full(len(self.carry) // self.layout.width, self.layout.width))

    def _cut(self, counts):
        if len(counts):
            self._before_last = self.total + int((counts[:-1] + 2 * self.layout.lead).sum())
        self._emit(self.carry, _offsets(counts), counts)
        self.carry = self.carry[counts.sum():]
