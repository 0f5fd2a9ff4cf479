"""`hrn label-config`: write the label config for a tree, or read the tree of a label config."""

import argparse
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from hierarchy import LabelTree
from studio import tree_files
from studio.errors import TreeFileError
from studio.label_config import parse_label_config
from studio.label_config_writer import Form, FormChoice, choose_form, label_config
from studio.tree_files import TreeFile
from studio.tree_tables import shorten
from worker.settings import Settings

#: Largest file read, in bytes: four for each character that is read.
MAX_BYTES = 4 * tree_files.MAX_CHARACTERS

#: Of each split the names its folder may have, as `hrn evaluate` takes them.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hrn label-config`."""
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    text = "a folder of folders, a .csv or .json file, or a label config (.xml) to write anew"
    source.add_argument("--from", dest="source", type=Path, metavar="PATH", help=text)
    text = "print the tree of this label config, and what hurts in it"
    source.add_argument("--read", type=Path, metavar="FILE", help=text)
    text = "one searchable list, one box and key a label, or whichever suits the tree (default)"
    add("--as", dest="form", choices=["taxonomy", "choices", "auto"], default="auto", help=text)
    add("--image-field", default="image", help="field of the tasks' data with the picture")
    add("--title", default="What is it?", help="asked above the answer")
    text = "what stands between names where a cell or text is a path, such as /"
    add("--separator", help=text)
    text = "the first line of a CSV file heads the columns; seen from its words if left out"
    add("--header", action=argparse.BooleanOptionalAction, help=text)
    text = "headings of the columns that are the levels, coarse to fine, commas between them"
    add("--levels", metavar="COLUMN,...", help=text)
    text = "heading of the column that names the labels, such as vernacularName"
    add("--name", metavar="COLUMN", help=text)
    add("--encoding", help="of the file, such as windows-1252; UTF-8 or UTF-16 if left out")
    add("--out", type=Path, metavar="FILE", help="write the label config here (default: print it)")


def run(arguments: argparse.Namespace, _settings: Settings) -> int:
    """Write or read. Returns the exit status."""
    if arguments.read and arguments.out:
        arguments.parser.error("--read prints a tree and writes no file: leave out --out")
    return _read(arguments) if arguments.read else _write(arguments)


def _read(arguments: argparse.Namespace) -> int:
    config = parse_label_config(read_text(arguments.read))
    told = {
        "as": config.kind,
        "image_field": config.image_key,
        "paths": [list(path) for path in config.tree.paths],
        "notes": list(config.notes),
    }
    if arguments.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 0
    print(tree_files.outline(config.tree))
    _say(f"{tree_files.summary(config.tree)}; {config.kind}, pictures in {config.image_key!r}")
    for note in config.notes:
        _say(f"note: {note}")
    return 0


def _write(arguments: argparse.Namespace) -> int:
    found = read_tree(
        arguments.source,
        separator=arguments.separator,
        header=arguments.header,
        levels=arguments.levels.split(",") if arguments.levels else None,
        name=arguments.name,
        encoding=arguments.encoding,
    )
    chosen = _choose(found.tree, arguments.form)
    xml = label_config(
        found.tree, chosen.form, image_key=arguments.image_field, title=arguments.title
    )
    if arguments.out:
        arguments.out.write_text(f"{xml}\n", encoding="utf-8")
    if arguments.json:
        told = {
            "as": chosen.form,
            "why": chosen.why,
            "labels": len(found.tree),
            "levels": found.tree.depth,
            "notes": list(found.notes),
        }
        shown = {"out": str(arguments.out)} if arguments.out else {"config": xml}
        print(json.dumps({**told, **shown}, indent=1, ensure_ascii=False))
        return 0
    for note in found.notes:
        _say(f"note: {note}")
    _say(f"{tree_files.summary(found.tree)}; as {chosen.form} ({chosen.why})")
    if arguments.out:
        _say(f"written to {arguments.out}: Settings > Labeling Interface > Code takes it")
    else:
        print(xml)
    return 0


def _choose(tree: LabelTree, wish: str) -> FormChoice:
    if wish == "auto":
        return choose_form(tree)
    form: Form = "taxonomy" if wish == "taxonomy" else "choices"
    return FormChoice(form, "as asked for")


def _say(text: str) -> None:
    """Beside what is printed, so that that can go to a file."""
    print(text, file=sys.stderr, flush=True)


# Sources


def read_tree(  # noqa: PLR0913 - how a file may be read
    source: Path,
    *,
    separator: str | None = None,
    header: bool | None = None,
    levels: Sequence[str] | None = None,
    name: str | None = None,
    encoding: str | None = None,
) -> TreeFile:
    """The label tree of a folder or file; see :mod:`studio.treefiles` for what files may hold.

    Args:
        source: a folder of folders, or a file; ``.json`` and ``.xml`` (or a text that begins as
            these do) are read as such, any other as CSV.
        separator: what stands between the names of a path.
        header: whether a CSV file's first line heads the columns.
        levels: headings of the columns of a CSV file that are the levels, coarse to fine.
        name: heading of the column that names the labels.
        encoding: of a file that is neither UTF-8 nor UTF-16.

    Raises:
        TreeFileError: it is not as expected; names the file, and the line or place.
        LabelConfigError: an XML file holds no tree.
    """
    if separator == "":
        raise TreeFileError("--separator is empty: give the text that stands between names")
    if source.is_dir():
        return read_folders(source)
    text = read_text(source, encoding)
    kind = source.suffix.lower()
    start = text.lstrip()[:1]
    try:
        if kind == ".json" or (kind != ".csv" and start in {"{", "["}):
            return tree_files.read_json(text, separator=separator, levels=levels, name=name)
        if kind == ".xml" or (kind != ".csv" and start == "<"):
            return TreeFile(parse_label_config(text).tree)
        return tree_files.read_csv(
            text, separator=separator, header=header, levels=levels, name=name
        )
    except TreeFileError as error:
        raise TreeFileError(f"{source}, {error}") from error


def read_text(file: Path, encoding: str | None = None) -> str:
    """A file's text: UTF-8, or UTF-16 with its mark, as spreadsheets save it; or as is said.

    Raises:
        TreeFileError: it is too large or no such text; names the line.
    """
    if not file.is_file():
        raise TreeFileError(f"{file}: expected a folder or a file, there is none")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise TreeFileError(f"{file}: {size} bytes, at most {MAX_BYTES} are read")
    data = file.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        raise TreeFileError(f"{file}: expected text, got a spreadsheet or archive: save it as CSV")
    utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
    try:
        return data.decode(encoding or ("utf-16" if utf16 else "utf-8-sig")).removeprefix("\ufeff")
    except LookupError as error:
        raise TreeFileError(
            f"--encoding {encoding}: expected the name of one, such as windows-1252"
        ) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TreeFileError(
            f"{file}, line {line}: expected {encoding or 'UTF-8'} text, got the byte "
            f"{data[error.start]:#04x}: save the file as UTF-8, or say --encoding (such as "
            "windows-1252, of Excel in western Europe)"
        ) from error


def read_folders(root: Path) -> TreeFile:
    """The tree of a folder of folders; the path of folders is the label.

    A layer of ``train``, ``val`` and ``test`` on top is no label. Hidden folders are left out, and
    links are not followed.

    Raises:
        TreeFileError: there is no folder in it, a name cannot be a label, train is missing beside
            the other splits, or they have labels that train has not.
    """
    splits = _splits(root)
    if not splits:
        return tree_files.from_paths(_folders(root))
    if "train" not in splits:
        there = ", ".join(sorted(folder.name for folder in splits.values()))
        raise TreeFileError(f"{root} has {there} but no train: add it, or give a folder of labels")
    found = tree_files.from_paths(_folders(splits["train"]))
    known = set(found.tree.paths)
    for folder in splits.values():
        more = [path for _, path in _folders(folder) if path not in known]
        if more:
            raise TreeFileError(
                f"{folder} has {len(more)} label(s) that train has not, such as "
                f"{shorten('/'.join(more[0]))}: move or rename them, or give "
                f"{splits['train']} alone"
            )
    names = ", ".join(folder.name for folder in splits.values())
    return TreeFile(found.tree, (*found.notes, f"{names} are read as splits, not as labels"))


def _splits(root: Path) -> dict[str, Path]:
    found = {}
    for name, aliases in SPLITS.items():
        there = [root / alias for alias in aliases if (root / alias).is_dir()]
        if len(there) > 1:
            both = " and ".join(folder.name for folder in there)
            raise TreeFileError(f"{root} has {both}: keep one of them")
        if there:
            found[name] = there[0]
    return found


def _folders(root: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each folder below one, those above first, by name."""
    none = True
    for place, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        path = tuple(
            unicodedata.normalize("NFC", name) for name in Path(place).relative_to(root).parts
        )
        for name in (unicodedata.normalize("NFC", name) for name in names):
            none = False
            yield f"folder {shorten('/'.join((*path, name)))}", (*path, name)
    if none:
        raise TreeFileError(f"{root}: expected a folder for each label, found no folder in it")
