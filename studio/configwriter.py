"""A label config for a tree, laid out so that picture and answer are on the screen together."""

from xml.etree import ElementTree as ET

from hierarchy import LabelTree

#: Picture on the left, answer beside it: below a tall picture nobody finds it.
STYLE = """
.hrn { display: flex; gap: 16px; align-items: flex-start; }
.hrn-picture { flex: 1 1 60%; min-width: 0; }
.hrn-answer { flex: 1 1 320px; max-width: 460px; }
"""

#: Greatest height of the picture, as CSS: part of the window, so that all of it is seen.
PICTURE_HEIGHT = "70vh"


def taxonomy_config(
    tree: LabelTree, *, image_key: str = "image", title: str = "What is it?"
) -> str:
    """Label config XML with one ``<Taxonomy>``.

    No ``leafsOnly``: a coarse answer is an answer. No ``maxUsages``: it refuses a deeper tick until
    the coarse one is unticked, without a word.

    Args:
        tree: what annotators choose from.
        image_key: field of the tasks' data that holds the picture.
        title: asked above the tree.
    """
    view = ET.Element("View")
    ET.SubElement(view, "Style").text = STYLE
    row = ET.SubElement(view, "View", className="hrn")
    picture = ET.SubElement(row, "View", className="hrn-picture")
    ET.SubElement(
        picture, "Image", name="image", value=f"${image_key}", maxHeight=PICTURE_HEIGHT, zoom="true"
    )
    answer = ET.SubElement(row, "View", className="hrn-answer")
    ET.SubElement(answer, "Header", value=title, size="4")
    taxonomy = ET.SubElement(
        answer,
        "Taxonomy",
        name="label",
        toName="image",
        showFullPath="true",
        placeholder="As deep as you are sure",
        minWidth="300px",
    )
    made: dict[int, ET.Element] = {-1: taxonomy}
    for level in range(tree.depth):
        for node in tree.level_nodes(level):
            parent = made[tree.parents[node]]
            made[node] = ET.SubElement(parent, "Choice", value=tree.names[node])
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")
