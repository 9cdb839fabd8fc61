"""Rows of text against plain loops over whole documents."""

import numpy as np
import pytest

from subspace.prepare.rows import Layout, PackedRows, SplitRows

SPECIAL = {"cls": 901, "sep": 902, "eos": 903}
PAD = 900


class Sink:
    def __init__(self):
        self.parts = []

    def write(self, rows):
        self.parts.append(np.array(rows))

    def value(self, *shape):
        return np.concatenate([np.zeros((0, *shape), np.int64), *self.parts])


def cut(stream, width):
    return [stream[at:at + width] for at in range(0, len(stream), width)]


def reference(documents, length, style, pack):
    """(rows with their positions of text, before padding, documents' starts) the slow way."""
    documents = [document for document in documents if document]
    width, lead = (length - 2, 1) if style == "encoder" else (length, 0)
    streams, starts = [], []  # starts: (stream, place)
    if pack:
        stream = []
        for document in documents:
            if style == "encoder" and stream:
                stream.append(SPECIAL["sep"])
            starts.append((0, len(stream)))
            stream += document + ([SPECIAL["eos"]] if style == "decoder" else [])
        streams = [stream]
    else:
        for document in documents:
            starts.append((len(streams), 0))
            streams.append(document + ([SPECIAL["eos"]] if style == "decoder" else []))
    rows, first_row = [], []
    for stream in streams:
        first_row.append(len(rows))
        rows += cut(stream, width)
    if style == "encoder":
        rows = [[SPECIAL["cls"], *row, SPECIAL["sep"]] for row in rows]
    positions = [(first_row[s] + at // width) * length + lead + at % width for s, at in starts]
    if rows:
        positions.append((len(rows) - 1) * length + len(rows[-1]))
    lengths = [len(row) for row in rows]
    return [row + [PAD] * (length - len(row)) for row in rows], lengths, positions


def build(calls, length, style, pack):
    sinks = Sink(), Sink(), Sink()
    builder = (PackedRows if pack else SplitRows)(Layout(length, style, SPECIAL, PAD), *sinks)
    for pieces in calls:
        builder.add(np.array([i for piece, _ in pieces for i in piece], dtype=np.int64),
                    np.array([len(piece) for piece, _ in pieces], dtype=np.int64),
                    np.array([first for _, first in pieces], dtype=bool))
    builder.finish()
    return builder, sinks[0].value(length), sinks[1].value(), sinks[2].value()


def random_pieces(generator, documents):
    """Documents as pieces, in calls of any size; both cuts anywhere."""
    pieces = []
    for document in documents:
        places = sorted(generator.integers(0, len(document) + 1, generator.integers(0, 3)))
        edges = [0, *places, len(document)]
        for number, (begin, end) in enumerate(zip(edges, edges[1:])):
            pieces.append((document[begin:end], number == 0))
    calls, at = [], 0
    while at < len(pieces):
        size = int(generator.integers(1, 5))
        calls.append(pieces[at:at + size])
        at += size
    return calls


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("style", ["encoder", "decoder"])
@pytest.mark.parametrize("length", [3, 4, 8])
def test_rows_equal_plain_loops(style, pack, length):
    for seed in range(40):
        generator = np.random.default_rng(seed)
        documents = [generator.integers(0, 800, generator.integers(0, 20)).tolist()
                     for _ in range(generator.integers(0, 8))]
        rows, lengths, starts = reference(documents, length, style, pack)
        builder, *found = build(random_pieces(generator, documents), length, style, pack)
        assert found[0].tolist() == rows, seed
        assert found[1].tolist() == lengths, seed
        assert found[2].tolist() == starts, seed
        assert builder.rows == len(rows) and builder.total == sum(lengths)
        assert builder.document_count == sum(map(bool, documents))
