"""Label config for a tree, laid out so that image and labels are on the screen together.

Two forms: one `<Taxonomy>`, for any tree, or a cascade of `<Choices>`, one key per label, for small
ones. The XML is parsed again before it is returned.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal
from xml.etree import ElementTree as ET

from hierarchy import LabelTree
from studio.errors import LabelConfigError
from studio.label_config import FIELD, PRELABEL, parse_label_config
from studio.label_controls import MAX_DEPTH, MAX_NODES, REFERENCE
from studio.tree_tables import shorten

#: How labels are asked for.
Form = Literal["taxonomy", "choices"]

#: Image on the left, labels beside it: below a tall image nobody finds them. Where there is no room
#: for both, the labels go above (wrap-reverse), for the same reason.
STYLE: Final = """
.hrn { display: flex; flex-wrap: wrap-reverse; gap: 8px 16px; align-items: flex-end; }
.hrn-image { flex: 1000 1 300px; min-width: 0; }
.hrn-labels { flex: 1 1 240px; max-width: 420px; }
.hrn-level { margin: 4px 0 0 6px; padding-left: 10px; border-left: 2px solid #8888; }
.hrn-labels .lsf-choices { margin: 4px 0; }
.hrn-labels .lsf-choice__item, .hrn-labels .lsf-choice__checkbox { line-height: 26px; }
.hrn-labels .lsf-hint { font-size: 12px; }
"""

#: Greatest height of the image, as CSS: the window less Label Studio's bars above and below.
IMAGE_HEIGHT: Final = "calc(100vh - 215px)"

#: Keys that Label Studio 1.23.2 gives to choices by itself, in its order, less "v", which selects
#: its move tool. It leaves out "h", "r" and "u", which are its own as well.
SINGLE_KEYS: Final = tuple("1234567890qwetasdfgzxcbyiopjklnm")

#: More keys, once those are used up; shift with a digit zooms the image.
SHIFTED_KEYS: Final = tuple(f"shift+{key}" for key in SINGLE_KEYS if key.isalpha())

#: Most labels of a cascade: each has a key of its own. Label Studio binds keys of hidden choices
#: too, and one key on two choices ticks both, so none can be used again elsewhere in the tree.
MAX_CASCADE: Final = len(SINGLE_KEYS) + len(SHIFTED_KEYS)

#: Most lines on the screen at once, all levels of one path together, for `auto` to select a
#: cascade: what fits beside the image at 1280 x 800.
MAX_SHOWN: Final = 20

#: Characters of a name that fit in one of these lines, key and box beside them, where the labels
#: are as narrow as they get.
LINE: Final = 26

#: Most levels: beside those of the tree, four tags are around a choice.
MAX_LEVELS: Final = MAX_DEPTH - 4

#: What XML 1.0 cannot hold, not even escaped.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: A name that is used in a control's name as it is, but for blanks.
_PLAIN: Final = re.compile(r"[A-Za-z0-9-]+(?: [A-Za-z0-9-]+)*")

#: Longest control name made of a path; a longer one is cut and numbered.
_LONG_NAME: Final = 80


@dataclass(frozen=True)
class FormChoice:
    """The form selected for a tree, and why."""

    form: Form
    why: str


def label_config(
    tree: LabelTree, form: Form, *, image_key: str = "image", title: str = "What is it?"
) -> str:
    """Return label config XML of a form; see :func:`taxonomy_config`, :func:`choices_config`."""
    write = taxonomy_config if form == "taxonomy" else choices_config
    return write(tree, image_key=image_key, title=title)


def choose_form(tree: LabelTree) -> FormChoice:
    """Select a cascade where each label has a key and one branch fits the screen."""
    if (obstacle := why_no_cascade(tree)) is not None:
        return FormChoice("taxonomy", obstacle)
    if (shown := most_shown(tree)) > MAX_SHOWN:
        why = f"a cascade would show {shown} lines at once; {MAX_SHOWN} have room beside an image"
        return FormChoice("taxonomy", why)
    return FormChoice("choices", f"{len(tree)} labels, each with a key of its own")


def most_shown(tree: LabelTree) -> int:
    """Return the most lines that a cascade shows at once: the siblings all along one path."""
    lines = [1 + (len(name) - 1) // LINE for name in tree.names]
    shown = dict.fromkeys([-1], sum(lines[root] for root in tree.level_nodes(0)))
    for node in tree.preorder:
        shown[node] = shown[tree.parents[node]] + sum(lines[one] for one in tree.children[node])
    return max(shown.values())


def why_no_cascade(tree: LabelTree) -> str | None:
    """Say why a cascade of `<Choices>` cannot ask for a tree; None if it can."""
    if len(tree) > MAX_CASCADE:
        return f"a cascade has keys for {MAX_CASCADE} labels, and the tree has {len(tree)}"
    for node, name in enumerate(tree.names):
        if REFERENCE.search(name):
            return (
                f'in a cascade Label Studio replaces the "$..." in {shorten(name)} by task data: '
                "rename it"
            )
        if "," in name and tree.children[node]:
            return (
                f"a cascade cannot show what lies below {shorten(name)}: Label Studio splits "
                "whenChoiceValue at the comma. Rename it"
            )
    return None


def taxonomy_config(
    tree: LabelTree, *, image_key: str = "image", title: str = "What is it?"
) -> str:
    """Return label config XML with one ``<Taxonomy>``.

    No ``leafsOnly``: a coarse label is a label. No ``maxUsages``: it refuses a deeper tick until
    the coarse one is unticked, without a word.

    Args:
        tree: what annotators choose from.
        image_key: field of the tasks' data that holds the image.
        title: asked above the tree.

    Raises:
        LabelConfigError: if Label Studio could not carry a name or the size of the tree.
    """
    _check(tree, image_key, title)
    view, labels = _page(image_key, title)
    taxonomy = ET.SubElement(
        labels,
        "Taxonomy",
        name="label",
        toName="image",
        showFullPath="true",
        placeholder="As deep as you are sure",
        minWidth="240px",
        maxWidth="420px",
    )
    if (separator := path_separator(tree.names)) != " / ":
        taxonomy.set("pathSeparator", separator)
    made: dict[int, ET.Element] = {-1: taxonomy}
    for level in range(tree.depth):
        for node in tree.level_nodes(level):
            parent = made[tree.parents[node]]
            made[node] = ET.SubElement(parent, "Choice", value=tree.names[node])
    return _written(view, tree)


def choices_config(tree: LabelTree, *, image_key: str = "image", title: str = "What is it?") -> str:
    """Return label config XML with a cascade of ``<Choices>``, one key per label.

    The root nodes are shown from the start, the labels below one once it is ticked. A coarse
    pre-label thus has its children on the screen, a key away. None is ``required``: a coarse label
    is a label.

    Args:
        tree: what annotators choose from.
        image_key: field of the tasks' data that holds the image.
        title: asked above the choices.

    Raises:
        LabelConfigError: if the tree does not suit (:func:`why_no_cascade`), or Label Studio could
            not carry a name.
    """
    if (obstacle := why_no_cascade(tree)) is not None:
        raise LabelConfigError(f"{obstacle}; or use a taxonomy (`--as taxonomy`)")
    _check(tree, image_key, title)
    view, labels = _page(image_key, title)
    in_order = [node for level in range(tree.depth) for node in tree.level_nodes(level)]
    keys = dict(zip(in_order, SINGLE_KEYS + SHIFTED_KEYS, strict=False))
    _add_choices(labels, tree, control_name(()), tree.level_nodes(0), keys)
    views = {-1: labels}
    for node in tree.preorder:
        if not (below := tree.children[node]):
            continue
        # Inside the view of the level above: what hides that hides this, in any editor.
        views[node] = ET.SubElement(
            views[tree.parents[node]],
            "View",
            className="hrn-level",
            visibleWhen="choice-selected",
            whenTagName=control_name(tree.path(node)[:-1]),
            whenChoiceValue=tree.names[node],
        )
        _add_choices(views[node], tree, control_name(tree.path(node)), below, keys)
    return _written(view, tree)


def _add_choices(
    view: ET.Element, tree: LabelTree, name: str, nodes: Iterable[int], keys: dict[int, str]
) -> None:
    choices = ET.SubElement(view, "Choices", name=name, toName="image", choice="single")
    choices.set(PRELABEL, "true")
    for node in nodes:
        ET.SubElement(choices, "Choice", value=tree.names[node], hotkey=keys[node])


def control_name(path: tuple[str, ...]) -> str:
    """Return the name of the `<Choices>` with the labels below a path; () is the top.

    It depends on nothing but the path, so that labels keep their control when the tree grows.
    """
    joined = ".".join(("label", *(name.replace(" ", "_") for name in path)))
    if all(map(_PLAIN.fullmatch, path)) and len(joined) <= _LONG_NAME:
        return joined
    number = hashlib.sha256("\0".join(path).encode(errors="surrogatepass")).hexdigest()[:12]
    return f"label-{number}.{re.sub(r'[^A-Za-z0-9.-]+', '_', path[-1])[:40]}"


def path_separator(names: Iterable[str]) -> str:
    """Return a separator at which the editor can split a path again.

    It joins a path and splits the text again (`NewTaxonomy.onChange`), so no name may hold the
    separator's character: with one at its end even " / " would be found too early.
    """
    used = set().union(*names)
    free = next((character for character in "/>|»→" if character not in used), None)
    if free is None:
        longest = max(len(run) for name in names for run in re.findall("/+", name))
        free = "/" * (longest + 1)
    return f" {free} "


def _page(image_key: str, title: str) -> tuple[ET.Element, ET.Element]:
    """Return the label config with its image, and the view for the labels."""
    view = ET.Element("View")
    ET.SubElement(view, "Style").text = STYLE
    row = ET.SubElement(view, "View", className="hrn")
    ET.SubElement(
        ET.SubElement(row, "View", className="hrn-image"),
        "Image",
        name="image",
        value=f"${image_key}",
        maxHeight=IMAGE_HEIGHT,
        zoom="true",
        zoomControl="true",
    )
    labels = ET.SubElement(row, "View", className="hrn-labels")
    ET.SubElement(labels, "Header", value=title, size="4")
    return view, labels


def _check(tree: LabelTree, image_key: str, title: str) -> None:
    if FIELD.fullmatch(f"${image_key}") is None:
        raise LabelConfigError(
            f"{shorten(image_key)} cannot name a field of the task data: expected letters, "
            "digits and _, such as image"
        )
    if (bad := _NO_XML.search(title)) is not None:
        raise LabelConfigError(f"the title holds {bad[0]!a}, which XML cannot: remove it")
    if len(tree) > MAX_NODES or tree.depth > MAX_LEVELS:
        raise LabelConfigError(
            f"the tree has {len(tree)} labels on {tree.depth} levels; at most {MAX_NODES} on "
            f"{MAX_LEVELS} can be used"
        )
    for name in tree.names:
        if (bad := _NO_XML.search(name)) is not None:
            raise LabelConfigError(
                f"the name {shorten(name)} holds {bad[0]!a}, which a label config cannot: "
                "remove that character"
            )
        if not name.strip():
            raise LabelConfigError(f"a name is blank ({name!a}): give each label a name")


def _written(view: ET.Element, tree: LabelTree) -> str:
    """Return the XML, after it was parsed as the same tree again."""
    if tree.depth <= 20:  # deeper, the blanks would outweigh the names
        ET.indent(view)
    xml = ET.tostring(view, encoding="unicode")
    back = parse_label_config(xml).tree
    if len(back) != len(tree) or set(back.paths) != set(tree.paths):
        raise LabelConfigError("this tree cannot be written so that it is read back as it was")
    return xml
