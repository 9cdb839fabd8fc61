"""Records become documents, documents pieces.

The rules (`--documents`):
  titles   a line `= Title =` at the start or behind a blank line begins a document (WikiText and its
           kin; `= = Section = =` does not); the line stays part of the text
  blank    blank lines separate documents
  line     every line that is not blank is a document
  file     a file, or a record of .jsonl, .parquet and datasets, is a document
  auto     titles for a text file that begins with such a line, else file; but blank for a single
           text file of which a share is to be held out
White space around a document is no part of it; one without anything else is none.

A document goes to the tokenizer whole, unless it is longer than PIECE characters: then it is cut
behind a line end with no other white space beside it. For WordPiece and byte-level BPE, which never
join text across such a place, the tokens are the same.
"""

import hashlib
import re
from dataclasses import dataclass

RULES = ("auto", "titles", "blank", "line", "file")
PIECE = 1 << 20
TITLE = re.compile(r"\s*= (?!= )\S(.*\S)? =\s*")
SECTION_END = re.compile(r" = =\s*$")


@dataclass
class Piece:
    text: str
    first: bool  # begins a document
    size: int    # bytes of UTF-8
    words: int
    place: float = 1.0  # of its document, where a share is held out (see place)


def is_title(line):
    return bool(TITLE.fullmatch(line)) and not SECTION_END.search(line)


def _groups(lines, rule):
    """The lines of one record as (line, begins a document) pairs; separators are left out."""
    begins, blank = True, True
    for line in lines:
        empty = not line.strip()
        if rule == "titles" and blank and not empty and is_title(line):
            begins = True
        elif rule == "line" or (rule == "blank" and empty):
            begins = True
        blank = empty
        if empty and rule in ("blank", "line"):
            continue
        yield line, begins
        begins = False


def _resolve(lines, is_text):
    """The rule that `auto` means for this record, and the record again."""
    start = []
    for line in lines:
        start.append(line)
        if line.strip():
            break

    def again():
        yield from start
        yield from lines

    titled = is_text and start and is_title(start[-1])
    return "titles" if titled else "file", again()


def _piece(lines, first, last):
    text = "".join(lines)
    text = text.lstrip() if first else text
    text = text.rstrip() if last else text
    return Piece(text, first, len(text.encode()), len(text.split()))


def _may_cut(before, after):
    return (len(before) > 1 and before.endswith("\n") and not before[-2].isspace()
            and not after[0].isspace())


def begins_with_title(lines):
    return is_title(next((line for line in lines if line.strip()), ""))


def pieces(lines, rule, is_text):
    """One record's documents as pieces."""
    if rule == "auto":
        rule, lines = _resolve(lines, is_text)
    held, length, first = [], 0, True
    for line, begins in _groups(lines, rule):
        if begins:
            if (piece := _piece(held, first, last=True)).text:
                yield piece
            held, length, first = [], 0, True
        elif length >= PIECE and _may_cut(held[-1], line):
            # Only a piece with text may be the first: what follows white space is still the start.
            yield _piece(held, first, last=False)
            held, length, first = [], 0, False
        if held or line.strip():
            held.append(line)
            length += len(line)
    if (piece := _piece(held, first, last=True)).text:
        yield piece


def place(content):
    """Where from 0 to 1 a document stands that has (or begins with) these bytes: decided by them alone."""
    first = hashlib.sha256(content).digest()[:8]
    return int.from_bytes(first, "big") / 2**64


def in_held_out(content, fraction):
    """Whether it is held out: equal documents stand on one side and more input moves none."""
    return place(content) < fraction
