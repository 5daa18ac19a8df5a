"""Writing and reading the GGUF files of the story model: version 3, little-endian, alignment 32.

Only what those files hold: strings, numbers, arrays of them, and tensors in F32, F16 and I2_S.
"""

import struct

import numpy as np

ALIGNMENT = 32
F32, F16, I2_S = 0, 1, 36
# GGUF value types: uint32, int32, float32, bool, string, array, uint64.
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FIXED = {U32: "<I", I32: "<i", FLOAT: "<f", BOOL: "<?"}


def pack_i2s(trits, scale):
    """Bytes of an I2_S tensor from trits `[rows, cols]` in -1..1; `cols` is a multiple of 128.

    Byte k of a 32-byte block holds the codes (trit + 1) of weights k, k+32, k+64 and k+96, the first
    in the top bits. The multiplier follows in a 32-byte tail.
    """
    rows, cols = trits.shape
    if cols % 128:
        raise ValueError(f"I2_S rows are blocks of 128 weights, these have {cols}")
    codes = (trits + 1).astype(np.uint8).reshape(rows, cols // 128, 4, 32)
    packed = codes[:, :, 0] << 6 | codes[:, :, 1] << 4 | codes[:, :, 2] << 2 | codes[:, :, 3]
    return packed.tobytes() + struct.pack("<f", scale).ljust(32, b"\0")


def unpack_i2s(data, rows, cols):
    """Trits as int8 `[rows, cols]` and the multiplier."""
    packed = np.frombuffer(data, np.uint8, rows * cols // 4).reshape(rows, cols // 128, 1, 32)
    codes = packed >> np.array([6, 4, 2, 0], np.uint8).reshape(4, 1) & 3
    (scale,) = struct.unpack_from("<f", data, rows * cols // 4)
    return codes.reshape(rows, cols).astype(np.int8) - 1, scale


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value):
    """Type id and bytes of a metadata value; a Python int is written as uint32."""
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return FLOAT, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value[0], str):
        return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
    return ARRAY, struct.pack("<IQ", I32, len(value)) + struct.pack(f"<{len(value)}i", *value)


def write(path, metadata, tensors):
    """`tensors`: (name, shape with rows first, type id, bytes)."""
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(value)
        head.append(_string(key) + struct.pack("<I", kind) + data)
    offset, body = 0, []
    for name, shape, kind, data in tensors:
        dims = tuple(reversed(shape))
        head.append(_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        padded = data + bytes(-len(data) % ALIGNMENT)
        offset += len(padded)
        body.append(padded)
    start = b"".join(head)
    path.write_bytes(start + bytes(-len(start) % ALIGNMENT) + b"".join(body))


class Reader:
    """Metadata as a dict and tensors as name -> (shape with rows first, type id, bytes)."""

    def __init__(self, path):
        self.data, self.at = path.read_bytes(), 0
        magic, version, n_tensors, n_values = self._take("<4sIQQ")
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{path} is no GGUF file of version 3")
        self.metadata = {}
        for _ in range(n_values):
            key = self._text()
            self.metadata[key] = self._read(self._take("<I")[0])
        infos = []
        for _ in range(n_tensors):
            name = self._text()
            dims = self._take(f"<{self._take('<I')[0]}Q")
            infos.append((name, tuple(reversed(dims)), *self._take("<IQ")))
        base = self.at + -self.at % ALIGNMENT
        ends = sorted(offset for *_, offset in infos) + [len(self.data) - base]
        self.tensors = {
            name: (shape, kind, self.data[base + offset : base + ends[ends.index(offset) + 1]])
            for name, shape, kind, offset in infos
        }

    def _take(self, layout):
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def _text(self):
        (size,) = self._take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def _read(self, kind):
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            inner, count = self._take("<IQ")
            return [self._read(inner) for _ in range(count)]
        return self._take(FIXED[kind])[0]
