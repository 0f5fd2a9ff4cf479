"""`hrn label-config`: sources in, label config out and back; faults are told with their line."""

import json
import unicodedata
from pathlib import Path

import pytest

from cli.__main__ import main
from cli.label_config import read_tree
from studio.errors import TreeFileError
from studio.label_config import parse_label_config

ROWS = "coarse,fine\nFruit,Apple\nFruit,Pear\nMilk\n"
PATHS = {("Fruit",), ("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)}


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folders(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).mkdir(parents=True)
    return root


def found(source: Path) -> set[tuple[str, ...]]:
    return set(read_tree(source).tree.paths)


def refusal(source: Path) -> str:
    with pytest.raises(TreeFileError) as caught:
        read_tree(source)
    return str(caught.value)


# The command


def test_a_csv_becomes_a_label_config_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "config.xml"
    assert (
        main(["label-config", "--from", str(file(tmp_path, "t.csv", ROWS)), "--out", str(out)]) == 0
    )
    told = capsys.readouterr()
    assert told.out == ""
    assert "4 labels on 2 level(s)" in told.err
    assert main(["label-config", "--read", str(out)]) == 0
    assert capsys.readouterr().out == "Fruit\n  Apple\n  Pear\nMilk\n"


def test_without_a_file_the_config_alone_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(file(tmp_path, "t.csv", ROWS))
    for form, kind in (("taxonomy", "taxonomy"), ("choices", "cascade"), ("auto", "cascade")):
        assert main(["label-config", "--from", source, "--as", form, "--image-field", "photo"]) == 0
        config = parse_label_config(capsys.readouterr().out)
        assert (set(config.tree.paths), config.kind) == (PATHS, kind)
        assert config.image_key == "photo"


def test_as_json_it_says_what_was_chosen_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(file(tmp_path, "t.csv", ROWS))
    assert main(["label-config", "--from", source, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["as"], told["labels"], told["levels"]) == ("choices", 4, 2)
    assert "key" in told["why"]
    assert set(parse_label_config(told["config"]).tree.paths) == PATHS


def test_what_is_read_as_json_can_be_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xml = file(
        tmp_path,
        "old.xml",
        '<View><Image name="i" value="$image"/><Taxonomy name="t" toName="i" leafsOnly="true">'
        '<Choice value="A"><Choice value="x"/></Choice></Taxonomy></View>',
    )
    assert main(["label-config", "--read", str(xml), "--json"]) == 0
    told = capsys.readouterr().out
    assert "leafsOnly" in json.loads(told)["notes"][0]
    assert found(file(tmp_path, "again.json", told)) == found(xml) == {("A",), ("A", "x")}


def test_notes_are_told_beside_the_outline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    xml = file(
        tmp_path,
        "old.xml",
        '<View><Image name="i" value="$image"/><Taxonomy name="t" toName="i" maxUsages="1">'
        '<Choice value="A"/></Taxonomy></View>',
    )
    assert main(["label-config", "--read", str(xml)]) == 0
    told = capsys.readouterr()
    assert told.out == "A\n"
    assert "Remove maxUsages" in told.err


def test_a_wrong_file_is_told_with_its_line_and_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file(tmp_path, "t.csv", "A,x\nB,,deep\n")
    assert main(["label-config", "--from", str(source)]) == 1
    assert "t.csv, line 2: level 2 is empty" in capsys.readouterr().err


def test_a_tree_too_large_for_a_cascade_is_refused_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = file(tmp_path, "t.csv", "\n".join(f"n{i}" for i in range(99)))
    assert main(["label-config", "--from", str(source), "--as", "choices"]) == 1
    assert "or use a taxonomy (`--as taxonomy`)" in capsys.readouterr().err
    assert main(["label-config", "--from", str(source)]) == 0


# Files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_are_read_as_spreadsheets_save_them(tmp_path: Path, encoding: str) -> None:
    source = file(tmp_path, "t.csv", "Früchte;Äpfel\nFrüchte;Birnen".encode(encoding))
    assert ("Früchte", "Äpfel") in found(source)


def test_another_encoding_is_refused_with_its_line_unless_it_is_named(tmp_path: Path) -> None:
    source = file(tmp_path, "t.csv", "A,x\nA,Äpfel\n".encode("windows-1252"))
    assert "t.csv, line 2: expected UTF-8" in refusal(source)
    assert "--encoding" in refusal(source)
    assert ("A", "Äpfel") in read_tree(source, encoding="windows-1252").tree.paths
    with pytest.raises(TreeFileError, match="expected the name of one"):
        read_tree(source, encoding="no such")


def test_columns_can_be_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(file(tmp_path, "t.csv", "Gruppe;Notiz;Art\nVogel;laut;Amsel\n"))
    assert main(["label-config", "--from", source]) == 1
    assert "--levels" in capsys.readouterr().err
    assert main(["label-config", "--from", source, "--levels", "Gruppe,Art"]) == 0
    assert parse_label_config(capsys.readouterr().out).tree.paths == (
        ("Vogel",),
        ("Vogel", "Amsel"),
    )


def test_the_kind_of_a_file_shows_in_its_name_or_else_its_text(tmp_path: Path) -> None:
    assert found(file(tmp_path, "a.json", '["A"]')) == {("A",)}
    assert found(file(tmp_path, "a.txt", ' {"A": ["x"]}')) == {("A",), ("A", "x")}
    assert found(file(tmp_path, "a.csv", "[A]")) == {("[A]",)}


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "there is none" in refusal(tmp_path / "gone.csv")


# Folders


def test_the_path_of_folders_is_the_label(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "Fruit/Apple", "Fruit/Pear", "Milk", ".cache/x")
    file(root / "Milk", "1.jpg", b"")
    assert found(root) == PATHS


def test_names_of_folders_are_brought_to_one_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "École")
    assert found(folders(tmp_path / "a", f"{decomposed}/x", "École/y")) == {
        ("École",),
        ("École", "x"),
        ("École", "y"),
    }
    split = folders(tmp_path / "b", "train/École", f"test/{decomposed}")
    assert found(split) == {("École",)}


def test_a_layer_of_splits_on_top_is_no_label(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "train/Fruit/Apple", "train/Milk", "valid/Milk", "test/Fruit")
    read = read_tree(root)
    assert set(read.tree.paths) == {("Fruit",), ("Fruit", "Apple"), ("Milk",)}
    assert "train, valid, test" in read.notes[0]


def test_splits_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "train/Fruit", "test/Fruit/Apple")
    assert '"Fruit/Apple"' in refusal(root)
    assert "no train" in refusal(folders(tmp_path / "other", "test/Fruit", "val/Fruit"))
    both = folders(tmp_path / "both", "train/A", "val/A", "valid/A")
    assert "keep one" in refusal(both)


def test_folders_without_folders_are_refused(tmp_path: Path) -> None:
    assert "found no folder" in refusal(folders(tmp_path, ".hidden"))


def test_names_of_folders_may_be_hostile(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "<b>&\"'/$x", "{{7*7}}")
    assert ("<b>&\"'", "$x") in found(root)
    broken = folders(tmp_path / "broken", "a\nb")
    assert "no label can" in refusal(broken)
    assert "\n" not in refusal(broken)


def test_links_are_not_followed(tmp_path: Path) -> None:
    root = folders(tmp_path / "data", "A")
    (root / "A" / "again").symlink_to(root)
    assert found(root) == {("A",), ("A", "again")}
