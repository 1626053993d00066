"""Other people's pickles give their values, and never run."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentplan import budget
from latentplan.budget import Budget
from latentplan.data.unpickling import Namespace, read_npy, read_pickle
from latentplan.errors import BudgetError, SourceError

DEMO, SEEN = "rlbench.demo.Demo", "rlbench.backend.observation.Observation"


def written(path: Path, value: Any, *, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


class Runs:
    """Unpickled by anybody else, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_what_would_run_a_command_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = written(tmp_path / "a.pkl", {"x": [1, Runs(mark)]})
    with pytest.raises(SourceError, match=r"a\.pkl: its pickle refers to (posix|nt)\.system"):
        read_pickle(file, known=(DEMO,))
    np.save(tmp_path / "b.npy", np.array(Runs(mark), object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"b\.npy: its pickle refers to posix\.system"):
        read_npy(tmp_path / "b.npy")
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists()  # the file was one that runs


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"c__builtin__\nset\n(tR.", "__builtin__.set"),
        (b"ccopy_reg\n_reconstructor\n.", "copy_reg._reconstructor"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy\nndarray.tofile\n.", "numpy.ndarray.tofile"),
        (b"clatentplan.data.unpickling\nNamespace\n.", "latentplan.data.unpickling.Namespace"),
        (b"Pnumber 7\n.", "the persistent id 'number 7'"),
        (b"crlbench.demo\nDemo\n.", "a type as a value"),
        (b"cnumpy\ndtype\n.", "a method as a value"),
        (b"\x80\x04\x8f.", "a set as a value"),
        (b"cnumpy\ndtype\n(S'V8'\ntR.", "an array of dtype 'V8'"),
        (b"cnumpy\ndtype\n(S'f8,O'\ntR.", "an array of dtype 'f8,O'"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "_codecs.encode to 'rot13'"),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, pickled: bytes, named: str) -> None:
    (tmp_path / "a.pkl").write_bytes(pickled)
    with pytest.raises(SourceError, match=named.replace(".", r"\.")):
        read_pickle(tmp_path / "a.pkl", known=(DEMO,))


def test_arrays_of_objects_and_records_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pkl", {"x": np.array([{}, 1], object)})
    with pytest.raises(SourceError, match=r"a\.pkl: its pickle refers to an array of objects"):
        read_pickle(file)
    record = np.zeros(2, [("x", "f8"), ("y", "O")])
    with pytest.raises(SourceError, match=r"b\.pkl: its pickle refers to an array of dtype 'V16'"):
        read_pickle(written(tmp_path / "b.pkl", record))
    np.save(tmp_path / "c.npy", record, allow_pickle=True)
    with pytest.raises(SourceError, match=r"c\.npy: holds records of objects"):
        read_npy(tmp_path / "c.npy")


def test_a_dtype_that_lies_about_its_pointers_is_refused(tmp_path: Path) -> None:
    # dtype('V8') whose state says: one field that is an object, but no objects inside. numpy
    # itself would take the array's bytes for an address.
    lie = (
        b"cnumpy\ndtype\n(S'f8'\nI00\nI01\ntR(I3\nS'|'\nN(S'x'\nt(dS'x'\n(cnumpy\ndtype\n"
        b"(S'O8'\ntRI0\ntsI8\nI1\nI0\ntb."
    )
    (tmp_path / "a.pkl").write_bytes(lie)
    with pytest.raises(SourceError, match=r"a\.pkl: "):
        read_pickle(tmp_path / "a.pkl")


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.pkl", list(range(1000)))
    assert len(read_pickle(file, limit=file.stat().st_size)) == 1000
    with pytest.raises(SourceError, match=r"a\.pkl: has 2760 bytes, allowed are 100"):
        read_pickle(file, limit=100)
    with pytest.raises(SourceError, match=r"none\.pkl: cannot be read"):
        read_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"no pickle",
        b"\x80\x04K\x01",  # no end
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a terabyte to reserve
        b"\x80\x04K\x01r\xff\xff\xff\x7f.",  # a memory of 2 G places to reserve
        b"(" * 5000 + b"t" * 5000 + b".",  # deep
        b"]q\x00h\x00a" + b"h\x01.",  # a place that was never filled
    ],
)
def test_no_pickle_is_an_error_that_names_the_file(tmp_path: Path, pickled: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(pickled)
    with pytest.raises(SourceError, match=r"a\.pkl: not a pickle that can be read"):
        read_pickle(tmp_path / "a.pkl")


def rlbench_classes() -> tuple[type, type]:
    demo, seen = type("Demo", (), {}), type("Observation", (), {})
    demo.__module__, seen.__module__ = "rlbench.demo", "rlbench.backend.observation"
    return demo, seen


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_known_classes_become_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, core: str
) -> None:
    demo_class, seen_class = rlbench_classes()
    for package in ("rlbench", "rlbench.backend"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for name, one in (("rlbench.demo", demo_class), ("rlbench.backend.observation", seen_class)):
        module = types.ModuleType(name)
        setattr(module, one.__name__, one)
        monkeypatch.setitem(sys.modules, name, module)
    rng = np.random.default_rng(0)
    arrays = {
        "pose": rng.normal(size=7),
        "matrix": np.asfortranarray(rng.normal(size=(4, 3))),
        "picture": rng.integers(0, 256, (5, 4, 3), np.uint8),
        "words": np.array(["open", "ü"]),
        "swapped": np.arange(3, dtype=">i2"),
        "flag": np.array(True),
    }
    if protocol > 2:  # which asks for builtins.bytes to say that there are none
        arrays["empty"] = np.zeros((0, 3))
    seen = seen_class()
    seen.__dict__ |= arrays | {"gripper_open": np.float64(1.0), "none": None}
    demo = demo_class()
    demo.__dict__ |= {"_observations": [seen, seen], "random_seed": ("MT19937", arrays["pose"], 3)}
    text = pickle.dumps(demo, protocol)
    if core == "numpy.core":  # as numpy 1 wrote it
        new, old = b"numpy._core", b"numpy.core"
        for part in (b".multiarray", b".numeric"):
            if protocol >= 4:
                new_text, old_text = (bytes([len(n + part)]) + n + part for n in (new, old))
                text = _unframed(text).replace(new_text, old_text)
            else:
                text = text.replace(new + part, old + part)
    (tmp_path / "a.pkl").write_bytes(text)
    monkeypatch.undo()

    found = read_pickle(tmp_path / "a.pkl", known=(DEMO, SEEN))
    assert "rlbench.demo" not in sys.modules
    assert isinstance(found, Namespace) and found.kind == DEMO
    first, second = found._observations
    assert first is second and first.kind == SEEN
    for name, wanted in arrays.items():
        value = getattr(first, name)
        np.testing.assert_array_equal(value, wanted, strict=True)
        assert type(value) is np.ndarray
    assert first.gripper_open == 1.0 and first.none is None
    np.testing.assert_array_equal(found.random_seed[1], arrays["pose"])
    with pytest.raises(SourceError, match=r"refers to rlbench\.backend\.observation\.Observation"):
        read_pickle(tmp_path / "a.pkl", known=(DEMO,))


def _unframed(pickled: bytes) -> bytes:
    """Return a pickle without frames, whose lengths would no longer fit."""
    import pickletools

    starts = [place for op, _, place in pickletools.genops(pickled) if op.name == "FRAME"]
    for start in reversed(starts):
        pickled = pickled[:start] + pickled[start + 9 :]
    return pickled


def test_objects_in_npy_files_come_back(tmp_path: Path) -> None:
    words = {"language": {"ann": ["a", "b"], "emb": np.ones((2, 1, 4), np.float32)}}
    np.save(tmp_path / "a.npy", np.array(words, object), allow_pickle=True)
    found = read_npy(tmp_path / "a.npy")
    assert found["language"]["ann"] == ["a", "b"]
    np.testing.assert_array_equal(
        found["language"]["emb"], words["language"]["emb"], strict=True
    )
    rows = np.array([[1, "x"], [None, (2, np.int64(3))]], object)
    np.save(tmp_path / "b.npy", rows, allow_pickle=True)
    assert read_npy(tmp_path / "b.npy").tolist() == rows.tolist()
    np.save(tmp_path / "c.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(read_npy(tmp_path / "c.npy"), np.arange(6).reshape(2, 3))
    for content in (b"", b"\x93NUMPY\x01\x00", (tmp_path / "c.npy").read_bytes()[:-9]):
        (tmp_path / "d.npy").write_bytes(content)
        with pytest.raises(SourceError, match=r"d\.npy: not a \.npy file that can be read"):
            read_npy(tmp_path / "d.npy")
    (tmp_path / "e.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"e\.npy: not a pickle that can be read"):
        read_npy(tmp_path / "e.npy")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_pickle_gives_values_or_a_clear_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    value = {"a": [1, "x", None], "b": (np.arange(5), np.float32(2)), "c": {"d": 1.5}}
    for protocol in (2, 4):
        text = bytearray(pickle.dumps(value, protocol))
        for _ in range(data.draw(st.integers(1, 4))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        file = tmp_path / "a.pkl"
        file.write_bytes(bytes(text))
        try:
            read_pickle(file)
        except SourceError as e:
            assert str(e).startswith(str(file)) and "\n" not in str(e)


def test_a_value_that_holds_itself_is_refused(tmp_path: Path) -> None:
    ring: list[Any] = [np.arange(2)]
    ring.append(({"ring": ring},))
    with pytest.raises(SourceError, match=r"a\.pkl: .*a value holds itself"):
        read_pickle(written(tmp_path / "a.pkl", ring))


def test_shared_values_are_counted_at_each_place(tmp_path: Path) -> None:
    shared = [[1] * 10] * 20
    assert read_pickle(written(tmp_path / "a.pkl", shared)) == shared
    with budget.using(Budget(items=150)):  # of 95 opcodes and 221 values
        with pytest.raises(BudgetError, match=r"a\.pkl: needs .* items, allowed are 150"):
            read_pickle(written(tmp_path / "a.pkl", shared))


def test_what_one_file_sets_does_not_reach_the_next(tmp_path: Path) -> None:
    # BUILD on the class itself, with slots: sets `kind` on it.
    text = io.BytesIO()
    text.write(b"\x80\x02crlbench.demo\nDemo\nN}X\x04\x00\x00\x00kindK\x01s\x86b0")
    text.write(b"crlbench.demo\nDemo\n)\x81.")
    (tmp_path / "a.pkl").write_bytes(text.getvalue())
    assert read_pickle(tmp_path / "a.pkl", known=(DEMO,)).kind == 1
    (tmp_path / "b.pkl").write_bytes(b"\x80\x02crlbench.demo\nDemo\n)\x81.")
    assert read_pickle(tmp_path / "b.pkl", known=(DEMO,)).kind == DEMO
