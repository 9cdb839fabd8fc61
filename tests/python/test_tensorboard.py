"""python -m subspace.tensorboard, read back by a parser of its own and against known bytes."""

import contextlib
import io
import json
import math
import struct

import pytest

from subspace.tensorboard.__main__ import FILE, main
from subspace.tensorboard.events import crc32c, masked, record, scalar_event, varint, version_event


def bitwise_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def test_crc32c():
    # Appendix B.4 of RFC 3720, and the check value of the algorithm.
    assert crc32c(b"\0" * 32) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283
    assert masked(0) == 0xA282EAD8


def test_known_bytes():
    # The first record of every event file that TensorFlow 2 or tensorboardX writes, at wall time 0.
    version = b"\x09" + bytes(8) + b"\x1a\x0dbrain.Event:2"
    assert version_event(0.0) == version
    assert record(version)[:8] == struct.pack("<Q", 24)
    event = b"\x09\0\0\0\0\0\0\xf8\x3f" b"\x10\xac\x02" b"\x2a\x0d" b"\x0a\x0b" b"\x0a\x04loss" b"\x15\0\0\0\x40"
    assert scalar_event(1.5, 300, [("loss", 2.0)]) == event
    assert varint(0) == b"\0" and varint(127) == b"\x7f" and varint(1 << 35) == b"\x80\x80\x80\x80\x80\x01"


def records(data):
    while data:
        length, = struct.unpack("<Q", data[:8])
        for begin, end, at in ((0, 8, 8), (12, 12 + length, 12 + length)):
            crc, = struct.unpack("<I", data[at:at + 4])
            plain = (crc - 0xA282EAD8) & 0xFFFFFFFF
            assert (plain >> 17 | plain << 15) & 0xFFFFFFFF == bitwise_crc32c(data[begin:end])
        yield data[12:12 + length]
        data = data[16 + length:]


def fields(data):
    """[(number, value)] of a protocol buffer; lengths are followed, nothing is interpreted."""
    def number(at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value, at

    at, out = 0, []
    while at < len(data):
        head, at = number(at)
        if head & 7 == 0:
            value, at = number(at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(head & 7) or number(at)
            value, at = data[at:at + size], at + size
        out.append((head >> 3, value))
    assert at == len(data)
    return out


def scalars_of(path):
    """{tag: [(step, wall time, value)]} of an event file."""
    first, *rest = records(path.read_bytes())
    assert dict(fields(first))[3] == b"brain.Event:2"
    found = {}
    for event in map(dict, map(fields, rest)):
        for kind, value in fields(event[5]):
            assert kind == 1
            parts = dict(fields(value))
            found.setdefault(parts[1].decode(), []).append(
                (event[2], struct.unpack("<d", event[1])[0], struct.unpack("<f", parts[2])[0]))
    return found


def convert(*arguments):
    with contextlib.redirect_stderr(io.StringIO()) as error:
        return main([str(argument) for argument in arguments]), error.getvalue()


def write_run(folder, *lines):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return folder


def test_metrics_come_back(tmp_path):
    run = write_run(
        tmp_path / "run",
        {"step": 10, "loss": 9.5, "lr": 1e-4, "grad_norm": 2.0, "tokens": 2560, "tokens_per_second": 1e6, "seconds": 2.5},
        {"step": 20, "loss": math.nan, "lr": 2e-4, "seconds": 5, "note": "text", "last": False},
        "",
        {"step": 20, "eval": {"loss": 8.25, "perplexity": 1e300}, "seconds": 6},
        {"step": 30, "eval": "valid", "loss": 8.0, "seconds": 7},
        {"step": 1 << 40, "loss": 1})
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "lo')  # being written
    status, error = convert(run)
    assert status == 0, error
    found = scalars_of(run / "tensorboard" / FILE)
    assert set(found) == {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "eval/loss", "eval/perplexity",
                          "eval/valid/loss"}
    assert found["loss"][0] == (10, 2.5, 9.5) and found["loss"][2] == (1 << 40, 0.0, 1.0)
    assert found["loss"][1][0] == 20 and math.isnan(found["loss"][1][2])
    assert found["tokens"] == [(10, 2.5, 2560.0)]
    assert found["eval/loss"] == [(20, 6.0, 8.25)] and found["eval/perplexity"] == [(20, 6.0, math.inf)]
    assert found["eval/valid/loss"] == [(30, 7.0, 8.0)]
    assert [path.name for path in (run / "tensorboard").iterdir()] == [FILE]


def test_again_replaces(tmp_path):
    runs = [write_run(tmp_path / name, {"step": 1, "loss": 1.0}) for name in ("a", "b")]
    for _ in range(2):
        assert convert(*runs, "--out", tmp_path / "logs")[0] == 0
    for name in ("a", "b"):
        assert scalars_of(tmp_path / "logs" / name / FILE) == {"loss": [(1, 0.0, 1.0)]}


@pytest.mark.parametrize("line, says", [
    ("{", "line 2 is not JSON"), ("[1]", "line 2 has no 'step'"), ('{"loss": 1}', "line 2 has no 'step'"),
    ('{"step": -1}', "line 2 has no 'step'"), ('{"step": 1.5}', "line 2 has no 'step'"),
])
def test_bad_lines_are_named(tmp_path, line, says):
    run = write_run(tmp_path / "run", {"step": 1, "loss": 1.0}, line)
    status, error = convert(run)
    assert status == 1 and says in error and "metrics.jsonl" in error
    assert not (run / "tensorboard").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    status, error = convert(tmp_path)
    assert status == 1 and "no such file" in error
