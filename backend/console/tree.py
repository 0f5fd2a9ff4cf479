"""/console/projects/<key>/tree: every node with its labels, how well it is known, and mix-ups."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from flask import request
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import chosen, page, the_project
from hierarchy import LabelTree
from hierarchy.tree import TOP
from inference.insight import Confusion
from inference.records import Known

#: Rows a page: a tree of thousands stays quick to read and to send.
PER_PAGE: Final = 100

#: Mix-ups shown.
MIX_UPS: Final = 12

#: Fewer labels than this are too few to learn a node from.
FEW: Final = 5

#: What is listed: title by name.
SHOWN: Final = {
    "children": "one level below",
    "all": "everything below",
    "missing": f"fewer than {FEW} labels",
}

#: In which order: title by name.
ORDERS: Final = {
    "tree": "as in the tree",
    "labels": "fewest labels first",
    "accuracy": "least accurate first",
    "name": "by name",
}


@dataclass(frozen=True)
class NodeRow:
    """A node in the table; figures are None where they were not recorded.

    Attributes:
        node: its id.
        path: from the top.
        leaf: whether nothing lies below it.
        nodes: how many nodes lie below it.
        exact: labels that name exactly it.
        below: labels that name something below it.
        checked: held-out images of it.
        accuracy: share of those that were recognised as it.
        precision: share of the images taken for it that were.
        taken_for: the sibling that it was most often taken for.
    """

    node: int
    path: tuple[str, ...]
    leaf: bool
    nodes: int
    exact: int | None
    below: int | None
    checked: int | None
    accuracy: float | None
    precision: float | None
    taken_for: tuple[str, int] | None


@bp.get("/projects/<key>/tree")
def tree(key: str) -> ResponseReturnValue:
    """Show a part of the tree, a hundred nodes per page; ``under`` names the node it is below."""
    project = the_project(key)
    known, names, live = chosen(project)
    if known is None:
        return page("tree", title="Tree", project=project, known=None, names=names, live=live)
    under = _under(known.tree)
    show = request.args.get("show", "children")
    show = show if show in SHOWN else "children"
    order = request.args.get("order", "tree")
    order = order if order in ORDERS else "tree"
    words = request.args.get("find", "").strip()[:100]
    nodes = list(_listed(known, under, show, words))
    nodes.sort(key=_key(known, order))
    pages = max(1, -(-len(nodes) // PER_PAGE))
    number = min(max(1, request.args.get("page", 1, type=int)), pages)
    some = nodes[(number - 1) * PER_PAGE : number * PER_PAGE]
    mixed = _by_node(known)
    return page(
        "tree",
        title="Tree",
        project=project,
        known=known,
        names=names,
        live=live,
        rows=[row_of(known, node, mixed) for node in some],
        under=under,
        way=[]
        if under is None
        else [(n, known.tree.names[n]) for n in known.tree.ancestors(under)],
        show=show,
        order=order,
        find=words,
        shown=SHOWN,
        orders=ORDERS,
        number=number,
        pages=pages,
        count=len(nodes),
        few=FEW,
        missing=missing(known),
        mix_ups=_mix_ups(known, under),
    )


def _under(tree_: LabelTree) -> int | None:
    node = request.args.get("under", type=int)
    return node if node is not None and 0 <= node < len(tree_) else None


def _listed(known: Known, under: int | None, show: str, words: str) -> Iterable[int]:
    """Return ids in the tree's own order."""
    tree_, of = known.tree, known.tree.arrays
    if show == "children" and not words:
        return tree_.level_nodes(0) if under is None else tree_.children[under]
    inside = tree_.preorder
    if under is not None:
        inside = inside[int(of.enter[under]) + 1 : int(of.leave[under])]
    if show == "missing":
        few = missing(known)
        inside = tuple(node for node in inside if node in few)
    if words:
        low = words.casefold()
        inside = tuple(node for node in inside if low in tree_.names[node].casefold())
    return inside


def missing(known: Known) -> frozenset[int]:
    """Return leaves that fewer than ``FEW`` labels name; none where labels were not recorded."""
    figures = known.figures
    if figures is None or known.record is None or known.record.labels is None:
        return frozenset()
    return frozenset(leaf for leaf in known.tree.leaves if figures.exact[leaf] < FEW)


def _key(known: Known, order: str) -> Callable[[int], tuple[float | str, ...]]:
    figures, tree_ = known.figures, known.tree
    if order == "name":
        return lambda node: (tree_.names[node].casefold(),)
    if order == "labels" and figures is not None:
        return lambda node: (float(figures.exact[node] + figures.below[node]),)
    if order == "accuracy" and figures is not None:
        return lambda node: (_or_last(figures.accuracy(node)),)
    return lambda _node: ()  # sorting is stable


def _or_last(accuracy: float | None) -> float:
    return 2.0 if accuracy is None else accuracy


def _by_node(known: Known) -> dict[int, Confusion]:
    """Return the most frequent mix-up of each node that has one."""
    found: dict[int, Confusion] = {}
    for one in known.confusions:
        found.setdefault(one.node, one)
    return found


def row_of(known: Known, node: int, mixed: dict[int, Confusion]) -> NodeRow:
    """Return all that the table shows of a node."""
    figures, tree_, of = known.figures, known.tree, known.tree.arrays
    labelled = figures is not None and known.record is not None and known.record.labels is not None
    judged = figures is not None and known.by_node
    one = mixed.get(node)
    return NodeRow(
        node=node,
        path=tree_.path(node),
        leaf=not tree_.children[node],
        nodes=int(of.leave[node] - of.enter[node]) - 1,
        exact=int(figures.exact[node]) if figures is not None and labelled else None,
        below=int(figures.below[node]) if figures is not None and labelled else None,
        checked=int(figures.checked[node]) if figures is not None and judged else None,
        accuracy=figures.accuracy(node) if figures is not None and judged else None,
        precision=figures.precision(node) if figures is not None and judged else None,
        taken_for=None if one is None else (tree_.names[one.taken_for], one.count),
    )


def _mix_ups(known: Known, under: int | None) -> list[tuple[str, str, str, int, int, int]]:
    """Return parent, truth, what it was taken for, how often, of how many, and the truth's id."""
    tree_ = known.tree
    inside = (
        one
        for one in known.confusions
        if under is None or (one.node != under and tree_.covers(under, one.node))
    )
    rows = []
    for one in inside:
        above = tree_.parents[one.node]
        parent = "" if above == TOP else tree_.names[above]
        names = (parent, tree_.names[one.node], tree_.names[one.taken_for])
        rows.append((*names, one.count, one.checked, one.node))
        if len(rows) == MIX_UPS:
            break
    return rows
