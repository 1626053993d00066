"""Hostile files: small ones that claim, share or nest so much that a naive reader ends the machine.

Each function writes one file, or a folder, and returns its path. `PICKLES`, `ARRAYS`, ... map names
to the bytes of files that a reader of that kind must refuse in a line.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np

PROTO = b"\x80\x04"


def shared_list(depth: int = 12, times: int = 10) -> bytes:
    """Return a pickle of a list that holds the next `times` times, `depth` levels deep."""
    text = PROTO + b"]q\x00"
    for level in range(depth):
        text += b"]q" + bytes([level + 1]) + b"(" + (b"h" + bytes([level])) * times + b"e"
    return text + b"."


def shared_tuple(depth: int = 60) -> bytes:
    """Return a pickle of a tuple that holds the next one twice: 2^depth steps for its hash."""
    return PROTO + b")" + b"2\x86" * depth


def deep_tuple(depth: int = 400_000) -> bytes:
    """Return a pickle of a tuple in a tuple: its hash overflows the stack of the processor."""
    return PROTO + b")" + b"\x85" * depth


FROMBUFFER = b"cnumpy.core.numeric\n_frombuffer\n(C\x00cnumpy\ndtype\n(S'f8'\ntR"
PICKLES = {
    "a list shared 12 levels deep": shared_list(),
    "a shared tuple as a key": b"\x80\x04}" + shared_tuple()[2:] + b"K\x01s.",
    "a shared tuple as a key by BUILD": b"\x80\x04}" + shared_tuple()[2:] + b"NbK\x01s.",
    "a shared tuple as a key of the memo": shared_tuple() + b"\x940}h\x00K\x01s.",
    "a shared tuple as a key of DICT": b"\x80\x04(" + shared_tuple()[2:] + b"K\x01d.",
    "a shared tuple in a set": b"\x80\x04\x8f(" + shared_tuple()[2:] + b"\x90.",
    "a shared tuple in a frozenset": b"\x80\x04(" + shared_tuple()[2:] + b"\x91.",
    "a shared tuple as a persistent id": shared_tuple() + b"Q.",
    "a deep tuple": deep_tuple() + b".",
    "a deep tuple as a key": b"\x80\x04}" + deep_tuple()[2:] + b"K\x01s.",
    "deep lists": PROTO + b"]" * 200_000 + b"a" * 199_999 + b".",
    "10 MB of empty containers": PROTO + b"]0" * 5_000_000 + b"N.",
    "10 MB of empty containers that stay": PROTO + b"(" + b"}" * 10_000_000 + b"l.",
    "a ring": PROTO + b"]q\x00(h\x00h\x00e.",
    "a whole number of 8 million bits": PROTO + b"\x8b\x40\x42\x0f\x00" + b"\x7f" * 10**6 + b".",
    "a place far away in the memo": PROTO + b"K\x01r\xff\xff\xff\x7f.",
    "a terabyte of bytes": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "an array with a shape that is shared": FROMBUFFER + shared_tuple()[2:] + b"S'C'\ntR.",
    "an array of no bytes and many rows": FROMBUFFER + b"(L1000000000000000L\nI0\ntS'C'\ntR.",
}


def npy(shape: str, descr: str = "<f8", *, data: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with a header that says what it likes."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


ARRAYS = {
    "a petabyte": npy("(1000000000000000,)"),
    "a shape that overflows": npy("(4294967296, 4294967296, 16)"),
    "rows of nothing": npy("(1000000000000000, 0)"),
    "numbers of no bytes": npy("(1000000000000000,)", "|S0"),
    "a negative shape": npy("(-1,)", data=bytes(8)),
    "a header that nests": npy("(" * 5000),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "a header of two values": npy("(1,), 'x': 1"),
    "a petabyte of objects": npy("(1000000000000000,)", "|O", data=PROTO + b"]."),
}


def zip_member(content: bytes, *, size: int | None = None, packed: bytes = b"") -> bytes:
    """Return a zip with one member, x.npy, whose declared size may be a lie."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packed or packer.compress(content) + packer.flush()
    declared, check = len(content) if size is None else size, zlib.crc32(content)
    fields = (20, 0, 8, 0, 0, check, len(packed), declared, 5, 0)
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + b"x.npy" + packed
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, *fields, 0, 0, 0, 0, 0) + b"x.npy"
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + b"PK\x05\x06" + end


def npz_of_zeros(size: int = 3 << 30, *, declared: int | None = None) -> bytes:
    """Return an .npz of 3 MB that inflates to `size` bytes of zeros, made without these."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(npy(f"({size},)", "|u1")) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += block * (size >> 20) + packer.flush()
    return zip_member(b"", size=size if declared is None else declared, packed=packed)


ARCHIVES = {
    "3 MB that inflate to 3 GB": npz_of_zeros(),
    "3 MB that say that they inflate to 1 kB": npz_of_zeros(declared=1000),
    "more than declared": zip_member(npy("(1,)", data=bytes(8)) + bytes(1 << 20), size=8),
    "less than declared": zip_member(npy("(1,)", data=bytes(8)), size=0xFFFFFF0),
    "3 GB declared, nothing there": zip_member(b"", size=3 << 30, packed=bytes(1 << 22)),
    "an array of a petabyte": zip_member(npy("(1000000000000000,)")),
    "a million members": b"PK\x01\x02" * 1_100_000,
    "a quine": zip_member(zip_member(zip_member(b""))),
}

DEEP = 100_000
JSON = {
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep mappings": '{"a":' * DEEP + "1" + "}" * DEEP,
    "a number of 5000 digits": "1" * 5000,
    "many values": "[" + "0," * 3_000_000 + "0]",
    "cut off": '{"a": [1, 2',
    "no text": "\ud800",
    "nothing": "",
}


def yaml_aliases(levels: int = 12) -> str:
    """Return the billion laughs, as YAML."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


def yaml_merges(levels: int = 12) -> str:
    """Return mappings that each take over the keys of the one before nine times."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} {{<<: [{before}], k{level}: 1}}")
    return "\n".join(lines)


YAML = {
    "a billion laughs": yaml_aliases(),
    "a ring": "a: &a [*a, *a]",
    "merged keys": yaml_merges(),
    "deep lists": "a: " + "[" * DEEP + "]" * DEEP,
    "deep indents": "".join(" " * i + "a:\n" for i in range(2000)),
    "many values": "a: [" + "0, " * 1_000_000 + "0]",
    "a number of 5000 digits": "a: " + "1" * 5000,
    "python": "a: !!python/object/apply:os.system ['true']",
}


LIMIT = '<limit lower="-1" upper="1" velocity="1" effort="1"/>'


def urdf_joint(parent: str, child: str, more: str = LIMIT) -> str:
    """Return a joint that turns, with the elements `more`."""
    ends = f'<parent link="{parent}"/><child link="{child}"/>'
    return f'<joint name="to_{child}" type="revolute">{ends}{more}</joint>'


def urdf_chain(links: int = 20_000, *, branches: bool = False) -> str:
    """Return a URDF whose links form one chain, each with a leaf of its own if it `branches`."""
    parts = ['<robot name="bomb">', *(f'<link name="l{i}"/>' for i in range(links))]
    for i in range(1, links):
        parent = i - 2 if branches and i % 2 == 0 else i - 1
        parts.append(urdf_joint(f"l{max(parent, 0)}", f"l{i}"))
    return "".join([*parts, "</robot>"])


def urdf_pair(more: str) -> str:
    """Return a URDF of two links whose joint has the elements `more`."""
    return f'<robot><link name="a"/><link name="b"/>{urdf_joint("a", "b", more)}</robot>'


URDFS = {
    "a chain of 20,000 links": urdf_chain(),
    "a comb of 20,000 links": urdf_chain(branches=True),
    "a chain of 1,000 links": urdf_chain(1000),
    "a comb of 1,000 links": urdf_chain(1000, branches=True),
    "a ring": urdf_pair(LIMIT).replace("</robot>", urdf_joint("b", "a") + "</robot>"),
    "a billion laughs": '<!DOCTYPE r [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><robot name="&b;"/>',
    "an external entity": '<!DOCTYPE r [<!ENTITY a SYSTEM "/etc/passwd">]><robot name="&a;"/>',
    "deep elements": "<robot>" + "<a>" * DEEP + "</a>" * DEEP + "</robot>",
    "many elements": "<robot>" + "<link/>" * 1_200_000 + "</robot>",
    "a long place": urdf_pair(LIMIT + '<origin xyz="' + "1 " * 500_000 + '"/>'),
    "infinite numbers": urdf_pair(LIMIT + '<origin xyz="1e999 nan 0"/>'),
}


def png(width: int, height: int, *, data: bytes = b"") -> bytes:
    """Return a PNG that declares a size; without `data` it holds one row of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = data or zlib.compress(bytes(min(width, 1000) * 3 + 1))
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


IMAGES = {
    "a PNG of 4 G pixels": png(65535, 65535),
    "a PNG of 300 M pixels": png(20_000, 15_000),
    "a PNG of the largest size": png(2**31 - 1, 2**31 - 1),
    "a PNG of no size": png(0, 0),
    "a JPEG of 65,500 squared": bytes.fromhex("ffd8ffc0001108ffdcffdc03011100021101031101ffda"),
}


def checkpoint(
    tensors: dict[str, np.ndarray], header: object, *, form: str = "latentplan-checkpoint-2"
) -> bytes:
    """Return a safetensors file with a header of any JSON values (or a text that is none)."""
    about: dict[str, object] = {}
    body = io.BytesIO()
    names = {"float32": "F32", "float64": "F64", "int64": "I64", "bool": "BOOL", "complex64": "C64"}
    for name, value in tensors.items():
        begin = body.tell()
        body.write(value.tobytes())
        about[name] = {
            "dtype": names[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [begin, body.tell()],
        }
    text = header if isinstance(header, str) else json.dumps(header)
    about["__metadata__"] = {"format": form, "header": text}
    head = json.dumps(about).encode()
    return struct.pack("<Q", len(head)) + head + body.getvalue()


def pipe(path: Path) -> Path:
    """Make a named pipe, which nobody writes to."""
    import os

    os.mkfifo(path)
    return path


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a file with a few bytes flipped, inserted, deleted, repeated or cut off."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(found) + 1))
        kind = rng.integers(0, 6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and at < len(found):
            found[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x2D, 0x39, 0x5B]))
        elif kind == 2:
            found[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 3:
            del found[at : at + int(rng.integers(1, 9))]
        elif kind == 4:
            found[at:at] = found[at : at + int(rng.integers(1, 65))]
        elif rng.integers(0, 4) == 0:
            del found[at:]
    return bytes(found)
