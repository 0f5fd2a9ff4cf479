"""The program inside a .pth file, reduced to what a state dict needs.

Such a file is a program for Python's object machine. Here its instructions are walked, and only
those are carried out that a state dict consists of; the first other one is an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pickletools import genops
from typing import BinaryIO, Final

import torch

from inference.errors import TorchFileError

_ORDERED_DICT: Final = "collections OrderedDict"
_REBUILD: Final = "torch._utils _rebuild_tensor_v2"
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}

#: More dimensions than any network's tensors have.
_MAX_DIMENSIONS: Final = 16


@dataclass(frozen=True)
class _Global:
    """A name the file would import; only those on our list get this far."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A run of elements somewhere else in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Its length in the file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class View:
    """A tensor: which elements of a storage, in which shape."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def run(stream: BinaryIO) -> tuple[object, dict[str, Storage]]:
    """Carry out one program; ``stream`` then stands behind it.

    Returns:
        What the program leaves, with a `View` for each tensor, and by key the storages that it
        speaks of.

    Raises:
        TorchFileError: the program is damaged, or does anything that a state dict does not need.
    """
    machine = _Machine()
    try:
        return machine.run(stream), machine.storages
    except (IndexError, KeyError, ValueError) as error:  # of genops or of an empty stack
        raise TorchFileError(f"damaged or cut short: {error}") from error


_MARK: Final = object()


@dataclass
class _Machine:
    """The object machine, reduced to what builds a state dict."""

    storages: dict[str, Storage] = field(default_factory=dict)
    _stack: list[object] = field(default_factory=list)
    _memo: dict[int, object] = field(default_factory=dict)

    def run(self, stream: BinaryIO) -> object:
        program = genops(stream)
        while True:
            # Looked at before genops reads on: what we refuse is not even decoded.
            code = stream.read(1)
            if code not in _ACTIONS:
                raise TorchFileError(
                    f"expected a state dict, but instruction {code!r} is there, which none needs "
                    "(or the file is damaged); save model.state_dict() with torch.save"
                )
            place = stream.tell()
            # genops would warn of odd escapes in a name to import; no name that we know has one.
            if code == b"c" and b"\\" in stream.readline() + stream.readline():
                raise ValueError("a name with a backslash")
            stream.seek(place - 1)
            _, argument, _ = next(program)
            if code == b".":
                return self._stack.pop()
            _ACTIONS[code](self, argument)

    def push(self, value: object) -> None:
        self._stack.append(value)

    def mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def store(self, slot: object) -> None:
        if isinstance(slot, int):
            self._memo[slot] = self._stack[-1]

    def fetch(self, slot: object) -> None:
        if isinstance(slot, int):
            self._stack.append(self._memo[slot])

    def import_name(self, name: object) -> None:
        if name not in _DTYPES and name not in (_ORDERED_DICT, _REBUILD):
            raise TorchFileError(
                f"refused: it wants to import {str(name)[:80]!r}, which no state dict needs. "
                "Nothing of it has run; get the weights from a source you trust"
            )
        self._stack.append(_Global(str(name)))

    def make_tuple(self, length: int) -> None:
        if length > len(self._stack):
            raise IndexError("too few values for a tuple")
        split = len(self._stack) - length
        self._stack[split:] = [tuple(self._stack[split:])]

    def tuple_from_mark(self, _: object) -> None:
        self._stack.append(tuple(self._since_mark()))

    def set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        names, values = items[::2], items[1::2]
        if not isinstance(target, dict) or len(names) != len(values):
            raise ValueError("items without a dictionary")
        for name, value in zip(names, values, strict=True):
            if not isinstance(name, str):  # hashing a nested tuple can take for ever
                raise TorchFileError("expected text as the name of each tensor")
            target[name] = value

    def set_item(self, _: object) -> None:
        value, name = self._stack.pop(), self._stack.pop()
        self.set_items([name, value])

    def append_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("items without a list")  # noqa: TRY004 - the function run makes it ours
        target.extend(items)

    def build(self, _: object) -> None:
        """Drop what `state_dict()` hangs on the dictionary: version numbers of the layers."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise ValueError("state without a dictionary")  # noqa: TRY004 - the function run makes it ours

    def persistent(self, _: object) -> None:
        storage = _storage(self._stack.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key!r} has two types or lengths")
        self._stack.append(storage)

    def reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of no function")  # noqa: TRY004 - the function run makes it ours
        if function.name == _REBUILD:
            self._stack.append(_view(arguments))
        elif function.name == _ORDERED_DICT and not arguments:
            self._stack.append({})
        else:
            raise ValueError(f"a call of {function.name}")

    def _since_mark(self) -> list[object]:
        """Take what was pushed since the last mark, and the mark."""
        taken: list[object] = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]


def _storage(reference: object) -> Storage:
    """``("storage", type, key, device, numel)``, and ``None`` behind it in the older layout."""
    if not isinstance(reference, tuple) or len(reference) not in {5, 6}:
        raise ValueError("a reference to no storage")
    kind, dtype, key, _, numel = reference[:5]
    known = isinstance(dtype, _Global) and dtype.name in _DTYPES
    if (
        kind != "storage"
        or not known
        or not isinstance(key, str)
        or reference[5:] not in ((), (None,))
    ):
        raise ValueError("a reference to no storage")
    return Storage(key, _DTYPES[dtype.name], *_counts((numel,)))


def _view(arguments: tuple[object, ...]) -> View:
    """``(storage, offset, size, stride, ...)``; the rest concerns training."""
    storage = arguments[0] if arguments else None
    if len(arguments) not in {6, 7} or not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    offset, size, stride = arguments[1:4]
    (start,) = _counts((offset,))
    view = View(storage, start, _counts(size), _counts(stride))
    if len(view.size) != len(view.stride) or len(view.size) > _MAX_DIMENSIONS:
        raise ValueError("a tensor's shape")
    return view


def _counts(values: object) -> tuple[int, ...]:
    """The values, if they are a tuple of whole numbers >= 0."""
    if not isinstance(values, tuple):
        raise ValueError("expected a tuple of numbers")  # noqa: TRY004 - the function run makes it ours
    counts = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
    if len(counts) != len(values):
        raise ValueError("expected whole numbers, 0 or more")
    return counts


#: Instruction -> what it does; from Python's Lib/pickletools.py, protocol 2.
_ACTIONS: Final[Mapping[bytes, Callable[[_Machine, object], None]]] = {
    b"\x80": lambda _, __: None,  # PROTO
    b"N": lambda machine, _: machine.push(None),
    b"\x88": lambda machine, _: machine.push(True),  # noqa: FBT003 - a value, not an option
    b"\x89": lambda machine, _: machine.push(False),  # noqa: FBT003
    b"K": _Machine.push,  # BININT1
    b"M": _Machine.push,  # BININT2
    b"J": _Machine.push,  # BININT
    b"\x8a": _Machine.push,  # LONG1
    b"X": _Machine.push,  # BINUNICODE
    b"}": lambda machine, _: machine.push({}),
    b"]": lambda machine, _: machine.push([]),
    b")": lambda machine, _: machine.push(()),
    b"(": _Machine.mark,
    b"t": _Machine.tuple_from_mark,
    b"\x85": lambda machine, _: machine.make_tuple(1),
    b"\x86": lambda machine, _: machine.make_tuple(2),
    b"\x87": lambda machine, _: machine.make_tuple(3),
    b"q": _Machine.store,  # BINPUT
    b"r": _Machine.store,  # LONG_BINPUT
    b"h": _Machine.fetch,  # BINGET
    b"j": _Machine.fetch,  # LONG_BINGET
    b"c": _Machine.import_name,  # GLOBAL
    b"R": _Machine.reduce,
    b"Q": _Machine.persistent,  # BINPERSID
    b"s": _Machine.set_item,
    b"u": lambda machine, _: machine.set_items(machine._since_mark()),  # noqa: SLF001
    b"a": lambda machine, _: machine.append_items([machine._stack.pop()]),  # noqa: SLF001
    b"e": lambda machine, _: machine.append_items(machine._since_mark()),  # noqa: SLF001
    b"b": _Machine.build,
    b".": lambda _, __: None,  # STOP
}
