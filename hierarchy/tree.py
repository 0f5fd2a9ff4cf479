"""The label tree: which nodes there are, what they are called, and which lies under which.

A node is its path from its root node; ids are only numbers for it. Trees may be ragged, have
several root nodes and any depth: nothing here recurses, and nothing costs nodes x depth unless it
is asked for.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, Self, SupportsIndex, TypeVar

from hierarchy.errors import TreeError, UnknownLabelError
from hierarchy.tree_index import TreeIndex

P = ParamSpec("P")
T = TypeVar("T")

Path = tuple[str, ...]

TOP = -1
"""The parent of a node that has none."""


@dataclass(frozen=True, repr=False)
class LabelTree:
    """A checked, unchangeable label tree of N nodes, with ids 0 to N - 1.

    Two trees are equal if they have the same nodes under the same ids. Make one with
    :meth:`from_paths`, :meth:`from_parents` or :meth:`from_json`.

    Attributes:
        parents: of each node the id of its parent, -1 for a top.
        names: of each node its own name, the last step of its path.

    Raises:
        TreeError: if there is no node, a name is empty, doubled among siblings or no string, a
            parent is out of range, the lengths differ, or nodes lie in a circle.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> tree.paths
        (('Fruit',), ('Milk',), ('Fruit', 'Apple'), ('Fruit', 'Pear'))
        >>> tree.parents, tree.leaves, tree.depth
        ((-1, -1, 0, 0), (1, 2, 3), 2)
    """

    parents: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_lengths(self.parents, self.names)
        for node, name in enumerate(self.names):
            _check_name(name, f"node {node}")
        for node, parent in enumerate(self.parents):
            _check_parent(parent, node, len(self.parents))
        if not all(level >= 0 for level in self.levels):
            raise TreeError(_circle(self.parents, self.names, self.levels))
        if len(self._ids) < len(self.parents):
            raise TreeError(self._doubled())

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[str]]) -> Self:
        """Build the tree that has these paths; the nodes above them are implied.

        Ids go level by level, top first, within a level in order of appearance. A node above
        another may be given as well; the same path twice is an error, since it is two siblings
        of one name.

        Args:
            paths: of each node its names from the top down, as a tuple or list.

        Raises:
            TreeError: if there is no path, or one is empty, given twice, a bare string, or has a
                step that is empty or no string.
        """
        given = _checked_paths(paths)
        parents: list[int] = []
        names: list[str] = []
        ends: set[int] = set()
        front = [(path, TOP) for path in given]
        for step in range(max(map(len, given))):
            known: dict[tuple[int, str], int] = {}
            longer = []
            for path, parent in front:
                key = (parent, path[step])
                node = known.setdefault(key, len(parents))
                if node == len(parents):
                    parents.append(parent)
                    names.append(path[step])
                if len(path) > step + 1:
                    longer.append((path, node))
                elif node in ends:
                    raise TreeError(f"path {path!r} is given twice: list each path once")
                else:
                    ends.add(node)
            front = longer
        return cls(tuple(parents), tuple(names))

    @classmethod
    def from_parents(cls, parents: Iterable[SupportsIndex], names: Iterable[str]) -> Self:
        """Build the tree in which node i is called ``names[i]`` and lies under ``parents[i]``.

        Ids are kept as given: a child may have a lower id than its parent.

        Args:
            parents: of each node the id of its parent, -1 for a top; whole numbers of any kind.
            names: of each node its own name.

        Raises:
            TreeError: as the class says, or if a parent is no whole number.
        """
        if isinstance(names, str):
            raise TreeError(f"names must be a list with one name a node, got the string {names!r}")
        return cls(tuple(_whole_numbers(parents)), tuple(names))

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Read what :meth:`to_json` wrote; keys it does not know are left alone.

        Raises:
            TreeError: if ``obj`` is not of that form; the message names the field.
        """
        if not isinstance(obj, Mapping):
            raise TreeError(f"tree: expected an object with parents and names, got {_kind(obj)}")
        for field in ("parents", "names"):
            if not isinstance(obj.get(field), list | tuple):
                raise TreeError(f"tree.{field}: expected a list, got {_kind(obj.get(field))}")
        return cls.from_parents(obj["parents"], obj["names"])

    def to_json(self) -> dict[str, Any]:
        """Write the tree as plain data: ``{"parents": [...], "names": [...]}``."""
        return {"parents": list(self.parents), "names": list(self.names)}

    def __len__(self) -> int:
        return len(self.parents)

    def __repr__(self) -> str:
        tops, leaves = self.parents.count(TOP), len(self.leaves)
        return f"<LabelTree nodes={len(self)} tops={tops} leaves={leaves} levels={self.depth}>"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each node's children, ascending."""
        below: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            if parent != TOP:
                below[parent].append(node)
        return tuple(map(tuple, below))

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Ids of the nodes without children, ascending."""
        return tuple(node for node, below in enumerate(self.children) if not below)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Number of nodes above each node: 0 for a root node."""
        found = [-1] * len(self)
        front = [node for node, parent in enumerate(self.parents) if parent == TOP]
        level = 0
        while front:
            for node in front:
                found[node] = level
            front = [child for node in front for child in self.children[node]]
            level += 1
        return tuple(found)

    @cached_property
    def depth(self) -> int:
        """Number of levels."""
        return max(self.levels) + 1

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """Each node's names from its root node down: nodes x depth memory, see :meth:`path`."""
        found: dict[int, Path] = {TOP: ()}
        for node in sorted(range(len(self)), key=self.levels.__getitem__):
            found[node] = (*found[self.parents[node]], self.names[node])
        return tuple(found[node] for node in range(len(self)))

    def path(self, node: int) -> Path:
        """Return the names from the root node down to this node."""
        return tuple(self.names[above] for above in self.ancestors(node))

    def index(self, path: Sequence[str]) -> int:
        """Find the id of the node at this path.

        Raises:
            UnknownLabelError: if there is none; it names the nearest known ancestor.
            TreeError: if ``path`` is empty or a bare string.
        """
        steps = _checked_path(path)
        known = list(self._walk(steps))
        if len(known) == len(steps):
            return known[-1]
        raise self._unknown(steps, known)

    def nearest(self, path: Sequence[str]) -> int | None:
        """Find the deepest node on this path that the tree has; None if it has not even the first.

        Raises:
            TreeError: if ``path`` is a bare string.
        """
        known = list(self._walk(_checked_path(path))) if len(path) else []
        return known[-1] if known else None

    def covers(self, a: int, b: int) -> bool:
        """Tell whether ``a`` is ``b`` or lies above it, in constant time.

        Raises:
            UnknownLabelError: if one is not a node's id.
        """
        enter, leave = self.arrays.enter, self.arrays.leave
        return bool(enter[self._node(a)] <= enter[self._node(b)] < leave[a])

    def ancestors(self, node: int) -> tuple[int, ...]:
        """Return the ids from the root node down to this node, which is the last.

        Raises:
            UnknownLabelError: if it is not a node's id.
        """
        found = []
        above = self._node(node)
        while above != TOP:
            found.append(above)
            above = self.parents[above]
        return tuple(reversed(found))

    def common_ancestor(self, nodes: Iterable[int]) -> int | None:
        """Find the deepest node that covers all of these; None if none does, or none are given.

        Raises:
            UnknownLabelError: if one is not a node's id.
        """
        enter, leave = self.arrays.enter, self.arrays.leave
        places = [enter[self._node(node)] for node in nodes]
        if not places:
            return None
        first, last = min(places), max(places)
        above = self.preorder[first]
        while above != TOP and last >= leave[above]:
            above = self.parents[above]
        return None if above == TOP else above

    def level_nodes(self, level: int) -> tuple[int, ...]:
        """Return the ids of the nodes on this level, ascending; level 0 holds the root nodes.

        Raises:
            TreeError: if the tree has no such level.
        """
        if not 0 <= level < self.depth:
            raise TreeError(f"level must be 0 to {self.depth - 1}, got {level}")
        return self._by_level[level]

    @cached_property
    def preorder(self) -> tuple[int, ...]:
        """Ids depth first: each node right before its descendants."""
        found = []
        stack = [node for node in range(len(self) - 1, -1, -1) if self.parents[node] == TOP]
        while stack:
            node = stack.pop()
            found.append(node)
            stack.extend(reversed(self.children[node]))
        return tuple(found)

    @cached_property
    def arrays(self) -> TreeIndex:
        """The tree as arrays."""
        return TreeIndex.build(self.parents, self.levels, self.preorder)

    @cached_property
    def _hash(self) -> int:
        return hash((self.parents, self.names))

    @cached_property
    def _ids(self) -> dict[tuple[int, str], int]:
        """Node by its parent and name."""
        keys = zip(self.parents, self.names, strict=True)
        return {key: node for node, key in enumerate(keys)}

    @cached_property
    def _by_level(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in range(self.depth)]
        for node, level in enumerate(self.levels):
            found[level].append(node)
        return tuple(map(tuple, found))

    def _walk(self, path: Path) -> Iterator[int]:
        """Ids of the nodes on this path, from the top, as far as the tree has them."""
        node = TOP
        for name in path:
            found = self._ids.get((node, name))
            if found is None:
                return
            yield found
            node = found

    def _node(self, node: int) -> int:
        if 0 <= node < len(self.parents):
            return node
        raise UnknownLabelError(f"node ids go from 0 to {len(self) - 1}, got {node}")

    def _unknown(self, path: Path, known: list[int]) -> UnknownLabelError:
        nearest = path[: len(known)]
        below = self.children[known[-1]] if known else self._by_level[0]
        meant = get_close_matches(
            path[len(known)], [self.names[node] for node in below[:1000]], n=1
        )
        message = (
            f"the tree has no {path!r}; "
            + (f"the nearest it has is {nearest!r}" if nearest else f"it has no top {path[0]!r}")
            + (f" (did you mean {(*nearest, *meant)!r}?)" if meant else "")
        )
        return UnknownLabelError(message, path, nearest)

    def _doubled(self) -> str:
        node = next(
            n
            for n, key in enumerate(zip(self.parents, self.names, strict=True))
            if self._ids[key] != n
        )
        twin = self._ids[self.parents[node], self.names[node]]
        return (
            f"nodes {node} and {twin} are both {self.path(node)!r}: "
            "rename one, siblings need names of their own"
        )


def cached_on_tree(
    make: Callable[Concatenate[LabelTree, P], T],
) -> Callable[Concatenate[LabelTree, P], T]:
    """Make a function of a tree, and of hashable arguments, keep its results with the tree."""

    @wraps(make)
    def found(tree: LabelTree, /, *args: P.args, **kwargs: P.kwargs) -> T:
        cache: dict[object, T] = vars(tree).setdefault("_cache", {})
        key = (make, args, *kwargs.items())
        if key not in cache:
            cache[key] = make(tree, *args, **kwargs)
        return cache[key]

    return found


def _check_lengths(parents: tuple[int, ...], names: tuple[str, ...]) -> None:
    if len(parents) != len(names):
        raise TreeError(f"each node needs a parent and a name, got {len(parents)} and {len(names)}")
    if not parents:
        raise TreeError("a tree needs at least one node, got none")


def _check_name(name: object, where: str) -> None:
    if not isinstance(name, str):
        raise TreeError(f"{where}: a name must be a string, got {_kind(name)}")
    if not name:
        raise TreeError(f"{where}: the name is empty, give it one")


def _check_parent(parent: int, node: int, size: int) -> None:
    if not TOP <= parent < size:
        raise TreeError(
            f"node {node}: its parent must be -1 (a top) or an id, 0 to {size - 1}, got {parent}"
        )


def _circle(parents: tuple[int, ...], names: tuple[str, ...], levels: tuple[int, ...]) -> str:
    """Name the nodes of one circle: those that no top leads to lie on one or below one."""
    node = levels.index(-1)
    seen: dict[int, None] = {}
    while node not in seen:
        seen[node] = None
        node = parents[node]
    order = list(seen)
    ring = order[order.index(node) :]
    shown = " under ".join(f"{n} ({names[n]!r})" for n in ring[:5])
    more = f" under ... ({len(ring)} in all)" if len(ring) > 5 else ""
    return f"nodes lie in a circle: {shown}{more} under {ring[0]}; give one of them the parent -1"


def _whole_numbers(parents: Iterable[SupportsIndex]) -> Iterator[int]:
    for node, parent in enumerate(parents):
        if isinstance(parent, bool):
            raise TreeError(f"node {node}: its parent must be a whole number, got {parent}")
        try:
            yield operator.index(parent)
        except TypeError as error:
            message = f"node {node}: its parent must be a whole number, got {_kind(parent)}"
            raise TreeError(message) from error


def _checked_paths(paths: Iterable[Sequence[str]]) -> list[Path]:
    if isinstance(paths, str):
        raise TreeError(f"paths must be a list of paths, got the string {paths!r}")
    given = [_checked_path(path) for path in paths]
    if not given:
        raise TreeError("a tree needs at least one path, got none")
    return given


def _checked_path(path: Sequence[str]) -> Path:
    if isinstance(path, str) or not isinstance(path, Sequence):
        raise TreeError(f"a path is a tuple of names such as ('Fruit', 'Apple'), got {_kind(path)}")
    if not path:
        raise TreeError("a path needs at least one name, got an empty one")
    for name in path:
        _check_name(name, f"path {tuple(path)[:20]!r}")
    return tuple(path)


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
