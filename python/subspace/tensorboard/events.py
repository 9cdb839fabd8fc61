"""TensorBoard's event files, written without TensorFlow.

A file is a sequence of records; each is its length (8 bytes), the masked CRC-32C of those, the data,
the masked CRC-32C of the data, all little-endian (TFRecord). The data is a protocol buffer, `Event`
of TensorFlow's event.proto, of which scalars need

    Event:    1 wall_time (double), 2 step (int64), 3 file_version (string), 5 summary (Summary)
    Summary:  1 value (repeated Value);  Value: 1 tag (string), 2 simple_value (float)
"""

import math
import struct

VERSION = "brain.Event:2"
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return table


_TABLE = _crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(crc):
    """The form that record files store, so that a checksum of checksums is no fixed point."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data):
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked(crc32c(length))), data, struct.pack("<I", masked(crc32c(data)))))


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, kind, payload):
    head = varint(number << 3 | kind)
    return head + varint(len(payload)) + payload if kind == BYTES else head + payload


def version_event(wall_time):
    return field(1, DOUBLE, struct.pack("<d", wall_time)) + field(3, BYTES, VERSION.encode())


def _single(value):
    """The nearest float32: what is beyond its range is infinite, which struct refuses to do."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def scalar_event(wall_time, step, scalars):
    """One event of several (tag, value) pairs."""
    values = b"".join(field(1, BYTES, field(1, BYTES, tag.encode()) + field(2, FLOAT, _single(value)))
                      for tag, value in scalars)
    return field(1, DOUBLE, struct.pack("<d", wall_time)) + field(2, VARINT, varint(step)) + field(5, BYTES, values)
