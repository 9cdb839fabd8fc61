"""Documents in groups of a few megabytes, each tokenized once: a finished group is kept under a name
made from everything its tokens depend on, so that the same command started again after a kill goes
on from there and ends with the same bits."""

import hashlib
import io
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .arrays import write_atomically
from .documents import pieces, place

SHARD = 4 << 20  # characters
AHEAD = 2        # shards in work at once: one is tokenized while another is collected


class Shard:
    """Pieces of documents, in order, all of one split."""

    def __init__(self, split, index):
        self.split, self.index = split, index
        self.pieces, self.length = [], 0
        self.position = 0  # of the inputs, when the shard was complete

    def add(self, piece):
        self.pieces.append(piece)
        self.length += len(piece.text)

    def key(self, tokenizer):
        digest = hashlib.sha256(tokenizer.encode())
        for piece in self.pieces:
            data = piece.text.encode()
            digest.update(b"%d %d\n" % (len(data), piece.first) + data)
        return digest.hexdigest()[:32]

    def firsts(self):
        return np.array([piece.first for piece in self.pieces], dtype=bool)


def read_shards(sources, split, rule, fraction=0.0):
    """The shards of all sources; with `fraction`, that share of the documents goes to "valid"."""
    open_shards, count, before = {}, {}, 0

    def new(name):
        count[name] = count.get(name, -1) + 1
        open_shards[name] = Shard(name, count[name])
        return open_shards[name]

    name = split
    for source in sources:
        for record in source.records():
            for piece in pieces(record, rule, source.is_text):
                if piece.first and fraction:
                    piece.place = place(piece.text.encode())
                    name = "valid" if piece.place < fraction else split
                shard = open_shards.get(name) or new(name)
                shard.add(piece)
                if shard.length >= SHARD:
                    shard.position = before + source.position()
                    yield shard
                    del open_shards[name]
        before += source.size
    for name in sorted(open_shards):
        open_shards[name].position = before
        yield open_shards[name]


def _load(path, pieces_expected):
    """The tokens of a finished shard, or None if there is none or it is damaged."""
    try:
        with np.load(path) as file:
            ids, counts = file["ids"], file["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = len(counts) == pieces_expected and counts.sum() == len(ids)
    return (ids, counts) if whole else None


def _tokens(shard, folder, tokenizer):
    """(shard, ids of all its pieces, tokens of each, whether an earlier run had made it)."""
    path = folder / f"{shard.split}-{shard.index:05d}-{shard.key(tokenizer.sha256)}.npz"
    loaded = _load(path, len(shard.pieces))
    if loaded:
        return shard, *loaded, True
    lists = tokenizer.encode([piece.text for piece in shard.pieces])
    counts = np.array([len(ids) for ids in lists], dtype=np.int64)
    ids = np.empty(counts.sum(), dtype=np.uint32)
    end = 0
    for part in lists:
        ids[end:end + len(part)] = part
        end += len(part)
    file = io.BytesIO()
    np.savez(file, ids=ids, counts=counts)
    write_atomically(path, file.getvalue())
    return shard, ids, counts, False


def tokenized(shards, folder, tokenizer):
    """`_tokens` of each shard, in order, AHEAD of them at a time."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = deque()
        try:
            for shard in shards:
                waiting.append(pool.submit(_tokens, shard, folder, tokenizer))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
