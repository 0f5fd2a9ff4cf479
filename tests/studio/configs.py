"""Label configs for tests: trees to draw, and small writers of the XML that asks for them."""

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from hypothesis import strategies as st

from hierarchy.tree import LabelTree

IMAGE = '<Image name="image" value="$image"/>'

#: Four levels deep, ragged, "Apple" under two parents.
GROCERY = (
    ("Fruit",),
    ("Fruit", "Apple"),
    ("Fruit", "Apple", "Granny-Smith"),
    ("Fruit", "Apple", "Granny-Smith", "Organic"),
    ("Fruit", "Avocado"),
    ("Vegetables",),
    ("Packages", "Juice", "Apple"),
    ("Packages", "Milk"),
)

#: No "$", "," or "/", which mean something to the editor and have tests of their own.
_names = st.text("abcAB &<>\"'é汉-.", min_size=1, max_size=6).filter(str.strip)


@st.composite
def trees(draw: st.DrawFn, *, max_depth: int = 4) -> LabelTree:
    """A ragged tree whose ids go level by level, in the order in which a config lists it."""
    paths = st.lists(_names, min_size=1, max_size=max_depth).map(tuple)
    drawn = draw(st.lists(paths, min_size=1, max_size=8, unique=True))
    return tree_of(drawn)


def tree_of(paths: Sequence[tuple[str, ...]]) -> LabelTree:
    """The tree of some paths, children in alphabetical order."""
    closed = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    return LabelTree.from_paths(sorted(closed))


def view(*parts: str) -> str:
    """A label config with the image and these parts."""
    return f"<View>{IMAGE}{''.join(parts)}</View>"


def choice(name: str, *children: str, title: str | None = None, more: str = "") -> str:
    """One `<Choice>`; with a title, the name becomes its alias."""
    value = quoteattr(name if title is None else title)
    alias = "" if title is None else f" alias={quoteattr(name)}"
    return f"<Choice value={value}{alias} {more}>{''.join(children)}</Choice>"


def taxonomy_xml(tree: LabelTree, *, aliased: bool = False, attributes: str = "") -> str:
    """One Taxonomy; if aliased, results carry the tree's names and annotators see others."""

    def nested(node: int) -> str:
        title = f"shown {node}" if aliased else None
        return choice(tree.names[node], *map(nested, tree.children[node]), title=title)

    roots = "".join(map(nested, tree.level_nodes(0)))
    return view(f'<Taxonomy name="label" toName="image" {attributes}>{roots}</Taxonomy>')


def choices_xml(names: Sequence[str], attributes: str = "") -> str:
    """One flat Choices."""
    inner = "".join(map(choice, names))
    return view(f'<Choices name="label" toName="image" {attributes}>{inner}</Choices>')


def cascade_xml(tree: LabelTree) -> str:
    """One Choices for the root nodes, and one for the children of each inner node."""

    def level(nodes: Sequence[int], name: str, condition: str) -> str:
        inner = "".join(choice(tree.names[node]) for node in nodes)
        return f'<Choices name="{name}" toName="image" {condition}>{inner}</Choices>'

    parts = [level(tree.level_nodes(0), "top", "")]
    for node, below in enumerate(tree.children):
        if below:
            parent = tree.parents[node]
            tag = "top" if parent < 0 else f"under{parent}"
            when = f'visibleWhen="choice-selected" whenTagName="{tag}"'
            value = quoteattr(tree.names[node])
            parts.append(level(below, f"under{node}", f"{when} whenChoiceValue={value}"))
    return view(*parts)
