"""Published layouts of trees are read rightly, and what is not understood is refused."""

import csv
import io
import json
import time
import unicodedata
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from studio.errors import TreeFileError
from studio.tree_files import read_csv, read_json
from studio.tree_tables import RANKS
from tests.studio.configs import tree_of

Path = tuple[str, ...]

_names = st.from_regex(r"[abAB][abé汉&'., <-]{0,4}[ab]", fullmatch=True)


@st.composite
def trees(draw: st.DrawFn) -> LabelTree:
    paths = st.lists(_names, min_size=1, max_size=4).map(tuple)
    return tree_of(draw(st.lists(paths, min_size=1, max_size=8, unique=True)))


def written(rows: Sequence[Sequence[str]], mark: str = ",", end: str = "\r\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=mark, lineterminator=end).writerows(rows)
    return text.getvalue()


def paths(text: str, **options: object) -> set[Path]:
    return set(read_csv(text, **options).tree.paths)  # type: ignore[arg-type]


def leaves(text: str, **options: object) -> set[Path]:
    tree = read_csv(text, **options).tree  # type: ignore[arg-type]
    return {tree.paths[leaf] for leaf in tree.leaves}


def notes(text: str, **options: object) -> str:
    return " ".join(read_csv(text, **options).notes)  # type: ignore[arg-type]


def refusal(text: str, **options: object) -> str:
    with pytest.raises(TreeFileError) as caught:
        read_csv(text, **options)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    return str(caught.value)


# Each layout gives back the tree it was written from

_HEADINGS = (
    ("id", "parent_id", "name"),
    ("ID", "Parent ID", "Name"),
    ("taxonID", "parentNameUsageID", "scientificName"),
    ("dwc:taxonID", "dwc:parentNameUsageID", "dwc:scientificName"),
    ("AphiaID", "parentNameUsageID", "ScientificName"),
    ("uid", "ParentID", "label"),
)


@given(
    trees(),
    st.sampled_from(_HEADINGS),
    st.sampled_from(",;\t"),
    st.randoms(),
    st.sampled_from(["", "urn:x:"]),
)
def test_a_tree_comes_back_from_ids_and_parents(
    tree: LabelTree, head: Path, mark: str, order: Random, prefix: str
) -> None:
    def key(node: int) -> str:
        return "" if node < 0 else f"{prefix}{node + 7}"

    rows = [
        [key(node), key(tree.parents[node]), tree.names[node], "x"] for node in range(len(tree))
    ]
    order.shuffle(rows)
    assert paths(written([[*head, "remarks"], *rows], mark)) == set(tree.paths)


@given(trees(), st.randoms())
def test_a_tree_comes_back_from_ranks_with_gaps(tree: LabelTree, order: Random) -> None:
    columns = sorted(order.sample(RANKS, 4), key=RANKS.index)
    rows = []
    for path in tree.paths:
        cells = dict(zip(columns, path, strict=False))
        rows.append([cells.get(rank, "NA") for rank in reversed(columns)])
    assert paths(written([list(reversed(columns)), *rows])) == set(tree.paths)


@given(trees(), st.sampled_from(["", "{} - "]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_a_tree_comes_back_from_a_list_of_paths(tree: LabelTree, ids: str, end: str) -> None:
    roots = [
        ("Food, Beverages & Tobacco", "Dips, Spreads"),
        *(("Top", *path) for path in tree.paths),
    ]
    lines = [ids.format(number) + " > ".join(path) for number, path in enumerate(roots, 1)]
    text = end.join(["# Google_Product_Taxonomy_Version: 2021-09-21", *lines, ""])
    assert paths(text) == {path[:cut] for path in roots for cut in range(1, len(path) + 1)}


# Categories of products

GOOGLE = """# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
3237 - Animals & Pet Supplies > Live Animals
499972 - Arts & Entertainment > Hobbies, Crafts > Art, Craft Kits
"""


def test_google_categories_are_read_with_ids_and_commas() -> None:
    expected = {
        ("Animals & Pet Supplies", "Live Animals"),
        ("Arts & Entertainment", "Hobbies, Crafts", "Art, Craft Kits"),
    }
    assert leaves(GOOGLE) == expected
    assert "Google_Product_Taxonomy_Version" in notes(GOOGLE)
    sheet = "1,Animals & Pet Supplies,,\n3237,Animals & Pet Supplies,Live Animals,\n"
    assert leaves(sheet) == {("Animals & Pet Supplies", "Live Animals")}


def test_a_line_without_the_id_that_others_have_is_refused() -> None:
    assert "line 5: expected an id" in refusal(f"{GOOGLE}Media > Books")


def test_one_path_a_line_may_be_quoted() -> None:
    assert leaves('A > B\n"A > C, ""big"""\nD > E') == {("A", "B"), ("A", 'C, "big"'), ("D", "E")}


# Taxa

DWC = (
    "taxonID\tparentNameUsageID\tacceptedNameUsageID\tscientificName\tscientificNameAuthorship"
    "\ttaxonRank\ttaxonomicStatus\tvernacularName\n"
    "1\t\t\tAnimalia\t\tkingdom\taccepted\tanimals\n"
    "2\t1\t\tFelis Linnaeus, 1758\tLinnaeus, 1758\tgenus\taccepted\t\n"
    "3\t2\t\tFelis catus Linnaeus, 1758\tLinnaeus, 1758\tspecies\tAccepted\tcat\n"
    '4\t2\t3\tFelis "domestica\t\tspecies\tsynonym\t\n'
    "5\t4\t\tFelis catus alba\t\tsubspecies\taccepted\twhite cat\n"
)


def test_darwin_core_is_read_without_its_synonyms_and_authors() -> None:
    assert leaves(DWC) == {("Animalia", "Felis", "Felis catus", "Felis catus alba")}
    assert "1 synonym(s) left out, such as on line 5" in notes(DWC)
    assert "--name" in notes(DWC)
    assert leaves(DWC, name="vernacular name") == {("animals", "Felis", "cat", "white cat")}


def test_a_species_list_of_gbif_names_the_row_by_its_rank() -> None:
    text = (
        "taxonKey\tscientificName\tacceptedTaxonKey\ttaxonRank\ttaxonomicStatus\tkingdom\tkingdomKey"
        "\tfamily\tgenus\tspecies\tspeciesKey\n"
        "3\tPanthera leo (Linnaeus, 1758)\t3\tSPECIES\tACCEPTED\tAnimalia\t1\tFelidae\tPanthera"
        "\tPanthera leo\t3\n"
        "2\tPanthera Oken, 1816\t2\tGENUS\tACCEPTED\tAnimalia\t1\tFelidae\tPanthera\t\t\n"
        "4\tPanthera leo persica\t4\tSUBSPECIES\tACCEPTED\tAnimalia\t1\tFelidae\tPanthera"
        "\tPanthera leo\t3\n"
        "5\tFelis leo L.\t3\tSPECIES\tSYNONYM\tAnimalia\t1\tFelidae\tPanthera\tPanthera leo\t3\n"
    )
    down = ("Animalia", "Felidae", "Panthera", "Panthera leo")
    assert leaves(text) == {(*down, "Panthera leo persica")}
    assert "1 synonym(s)" in notes(text)


def test_worms_gives_the_species_its_whole_name() -> None:
    text = (
        "AphiaID,ScientificName,Authority,Kingdom,Genus,Subgenus,Species,taxonRank\n"
        '140480,Mytilus edulis,"Linnaeus, 1758",Animalia,Mytilus,,edulis,Species\n'
    )
    assert leaves(text) == {("Animalia", "Mytilus", "Mytilus edulis")}


def test_a_family_beside_a_scientific_name_is_the_level_above() -> None:
    text = "family,scientificName\nFelidae,Felis catus\nCanidae,Canis lupus\n"
    assert leaves(text) == {("Felidae", "Felis catus"), ("Canidae", "Canis lupus")}
    no_rank = "genus;scientificName\nPanthera;Panthera Oken, 1816\nPanthera;Panthera leo"
    assert leaves(no_rank) == {("Panthera", "Panthera leo")}


def test_parents_that_are_not_there_give_way_to_ranks() -> None:
    text = (
        "taxonID,parentNameUsageID,scientificName,taxonRank,family,genus\n"
        "7,99,Felis catus,species,Felidae,Felis\n"
    )
    assert leaves(text) == {("Felidae", "Felis", "Felis catus")}
    assert 'its parent "99" is on no line' in notes(text)


SPECIESNET = "\n".join(
    f"f1856211-cfb7-4a5b-9158-c0f72fd09e{number};{rest}"
    for number, rest in enumerate(
        (
            ";;;;;blank",
            ";;;;;animal",
            "mammalia;carnivora;felidae;;;cat family",
            "mammalia;carnivora;felidae;panthera;leo;lion",
            ";;;;;vehicle",
        ),
        10,
    )
)


@pytest.mark.parametrize("head", ["", "uuid;class;order;family;genus;species;common name\n"])
def test_speciesnets_labels_are_read(head: str) -> None:
    down = ("animal", "mammalia", "carnivora", "felidae", "panthera", "panthera leo")
    assert leaves(head + SPECIESNET) == {("blank",), ("vehicle",), down}
    if head:
        named = leaves(head + SPECIESNET, name="common name")
        assert ("animal", "mammalia", "carnivora", "cat family", "panthera", "lion") in named


# Codes

ICD = """code,description
A00-B99,Certain infectious diseases
A00-A09,Intestinal
A00,Cholera
A00.0,"Cholera, classical"
A000,"Cholera, classical"
S72.001A,Fracture
S72.0,Neck
"""


def test_icd_codes_lie_below_the_code_that_begins_them() -> None:
    infectious = ("Certain infectious diseases", "Intestinal", "Cholera", "Cholera, classical")
    assert leaves(ICD) == {infectious, ("Neck", "Fracture")}
    order = (
        f"00001 A00     0 {'Cholera':60} Cholera\n"
        f"00002 A000    1 {'Cholera, classical':60} Cholera, classical\n"
    )
    assert leaves(order) == {("Cholera", "Cholera, classical")}


def test_other_codes_are_refused_with_the_cure() -> None:
    message = refusal("code,description\nAMRO,Robin\n")
    assert message.startswith("line 2: ")
    assert "parent_id" in message
    assert leaves("code,description\nAMRO,Robin\n", levels=["description"]) == {("Robin",)}


# What is not understood


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Label ID,Short Code\n1,AB\n2,CD\n", 'line 1: .*"Short Code".*--levels'),
        ("Gruppe,Art\nVogel,Amsel\n", "line 1: cannot tell .*--no-header"),
        ("class,image_count\ncat,4\n", '"image_count"'),
        ("name,category\nApple,Fruit\n", "from coarse to fine"),
        ("1,Animal,\n2,Dog,1\n3,Cat,1\n", "line 2: .*numbers.*parent_id"),
        ("Level 1,Level 2\n1,2\n", "line 2: .*numbers"),
        ("id,name,parent_id\n1,A,3\n2,B,1\n3,C,2\n", "line 2: .*circle"),
        ("id,name,parent_id\n1,A,1\n", "line 2: .*circle"),
        ("id,name,parent_id\n1,A,\n2,B,9\n", 'line 3: its parent "9" is on no line'),
        ("id,name,parent_id\n1,A,\n1,B,\n", "line 3: .*already"),
        ("id,name,parent_id\n1,A,\n2,,1\n", "line 3: expected a name"),
        ("id,name,parent_id\n1,7,\n2,8,1\n", "numbers"),
        ("id,parent_id\n1,\n2,1\n", "line 1: expected a column with the names"),
        ("name,parent\nApple,\nApple,Apple\n", "line 3: .*already"),
        ("kingdom,family\nAnimalia,Felidae\nAnimalia,17\n", "line 3: .*number"),
        ("kingdom,family,genus\nAnimalia,Felidae\n,,\nNA,NA,NA\n", "line 4: .*all are empty"),
        ("name,name\nA,B\n", "line 1: two columns"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(TreeFileError, match=words):
        read_csv(text)


def test_a_person_may_say_which_columns_are_the_levels() -> None:
    text = "Gruppe,Bemerkung,Art\nVogel,laut,Amsel\nVogel,,Star\n"
    assert leaves(text, levels=["Gruppe", "art"]) == {("Vogel", "Amsel"), ("Vogel", "Star")}
    assert 'a column headed "Familie"' in refusal(text, levels=["Familie"])


def test_parents_may_be_names_and_edges_may_lead_to_root_nodes() -> None:
    assert leaves("name,parent\nAnimal,\nDog,Animal\n") == {("Animal", "Dog")}
    assert leaves("parent,child\nAnimal,Dog\nDog,Poodle\n") == {("Animal", "Dog", "Poodle")}


def test_rows_given_again_and_a_parent_of_zero_are_read() -> None:
    text = "ID;Parent ID;Name\r\n1;0;A\r\n2;1;B\r\n2;1;B\r\n;;\r\n\r\n"
    assert paths(text) == {("A",), ("A", "B")}
    assert "line 4 repeats line 3" in notes(text)


# Unicode


def test_siblings_that_differ_by_normalization_only_are_one() -> None:
    composed, decomposed = "École", unicodedata.normalize("NFD", "École")
    assert composed != decomposed
    assert leaves(f"{composed},x\n{decomposed},y\n") == {("École", "x"), ("École", "y")}
    nested = read_json(json.dumps({composed: ["x"], decomposed: ["y"]})).tree
    assert len(nested.level_nodes(0)) == 1


# JSON


def test_records_are_read_as_a_table() -> None:
    records = [{"id": 1, "name": "A", "parent_id": None}, {"id": 2, "name": "B", "parent_id": 1}]
    assert read_json(json.dumps(records)).tree.paths == (("A",), ("A", "B"))
    coco = {"categories": [{"id": 1, "name": "cat", "supercategory": "animal"}], "images": []}
    assert read_json(json.dumps(coco)).tree.paths == (("animal",), ("animal", "cat"))
    by_id = {"1": {"name": "A", "parent": None}, "2": {"name": "B", "parent": 1}}
    assert read_json(json.dumps(by_id)).tree.paths == (("A",), ("A", "B"))
    roboflow = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
    ]
    assert read_json(json.dumps(roboflow)).tree.paths == (("animals",), ("animals", "cat"))


def test_other_keys_of_nodes_and_numbers_of_labels_become_no_labels() -> None:
    data = {"name": "A", "id": 3, "children": [{"name": "B", "id": "9"}]}
    assert read_json(json.dumps(data)).tree.paths == (("A",), ("A", "B"))
    assert read_json('{"0": "cat", "1": "dog"}').tree.paths == (("cat",), ("dog",))
    with pytest.raises(TreeFileError, match="as children, got it as"):
        read_json(json.dumps({"name": "A", "subs": [{"name": "B"}]}))


# Size


def test_thousands_of_rows_are_read_in_seconds() -> None:
    rows = [["taxonID", "parentNameUsageID", "scientificName", "taxonomicStatus"]]
    for number in range(20_000):
        status = "accepted" if number < 15_000 else "synonym"
        rows.append([str(number + 1), str(number // 8 or ""), f"Name {number}", status])
    began = time.monotonic()
    assert len(read_csv(written(rows, "\t")).tree) == 15_000
    assert time.monotonic() - began < 10


_HEADED = st.sampled_from(
    (
        "id",
        "parent_id",
        "name",
        "parent",
        "child",
        "scientificName",
        "vernacularName",
        "kingdom",
        "order",
        "genus",
        "species",
        "code",
        "description",
        "path",
        "uuid",
        "taxonRank",
        "taxonomicStatus",
        "acceptedNameUsageID",
        "Level_1",
        "Foo",
    )
)
_CELLS = st.sampled_from(
    ["", "NA", "1", "2", "A", "Aa b", "A00", "A00.1", "A00-A09", "synonym", "genus", "x > y", '"q"']
)


@given(st.lists(_HEADED, max_size=7), st.lists(st.lists(_CELLS, max_size=7), max_size=5))
def test_any_table_is_read_or_refused(head: list[str], rows: list[list[str]]) -> None:
    try:
        names, words = read_csv(written([head, *rows])).tree.names, ""
    except TreeFileError as error:
        names, words = (), str(error)
    assert words.isprintable()
    assert all(name == name.strip() != "" for name in names)
