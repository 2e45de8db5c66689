"""Tables of classes and captions beside images: how they are found and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.layout_toys import mask, photo
from vitp.core.errors import ConfigError, DataError
from vitp.data.compile import compile_labels
from vitp.data.formats import detect, read_labels
from vitp.data.formats.detect import detect_format
from vitp.data.synthesis.build import SynthesisConfig
from vitp.tasks.data import LabelReader, labelled_only


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


TABLES: dict[str, tuple[str, Callable[[int], str]]] = {
    "names": ("image,label", lambda k: f"{k}.png,{'ab'[k % 2]}"),
    "no suffix": ("image_id,age,dx", lambda k: f"{k},{40 + k},{'ab'[k % 2]}"),
    "semicolons": ("filename;class", lambda k: f"{k}.png;{'ab'[k % 2]}"),
    "one column a class": ("image,a,b", lambda k: f"{k},{float(1 - k % 2)},{float(k % 2)}"),
    "paths": ("Path,Category", lambda k: f"pics/{k}.png,{'ab'[k % 2]}"),
}


def class_table(root: Path, head: str, row: Callable[[int], str]) -> Path:
    for k in range(4):
        photo(root / "pics" / f"{k}.png")
    text(root / "labels.csv", head + "\n" + "".join(row(k) + "\n" for k in range(4)))
    return root


@pytest.mark.parametrize("table", TABLES)
def test_tables_of_classes(tmp_path: Path, table: str) -> None:
    class_table(tmp_path, *TABLES[table])
    assert detect_format(tmp_path) == detect_format(tmp_path / "labels.csv") == "classes"
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["a", "b", "a", "b"] and found.findings == ()
    assert found.scene_classes == ("a", "b")
    assert found.understood[0].startswith('labels.csv: column "')


def test_tables_of_classes_with_numbers_splits_and_gaps(tmp_path: Path) -> None:
    class_table(
        tmp_path,
        "image,label,split",
        lambda k: f"{k + 1}.png,{'' if k == 2 else k},{('train', 'test')[k % 2]}",
    )
    found = read_labels("auto", tmp_path, classes="sea,port,town,farm")
    assert [(i.scene, i.split) for i in found.items] == [("sea", "train"), ("port", "test")]
    assert found.findings == (
        "labels.csv:4: 3.png has no class; left out",
        "labels.csv:5: 4.png is missing; left out",
    )
    assert read_labels("auto", tmp_path).scene_classes == ("0", "1")


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        (
            "image,labels",
            lambda k: f"{k}.png,a b",
            'labels.csv: "a b" .* may be one class or 2 classes.*separator=blank',
        ),
        (
            "image,label",
            lambda k: f"0.png,{k}",
            '0.png has the class "1" here and "0" in labels.csv:2.*separator=rows',
        ),
        (
            "filename,segmentation,class",
            lambda k: f"{k}.png,1.5 9 7 2.5,a",
            "labels.csv is a table of boxes, outlines or points",
        ),
    ],
)
def test_tables_that_say_more_than_a_class(
    tmp_path: Path, head: str, row: Callable[[int], str], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read_labels("auto", class_table(tmp_path, head, row))


MULTI_LABEL: dict[str, tuple[str, Callable[[int], str], dict[str, str]]] = {
    "bars": ("image,labels", lambda k: f"{k}.png,{('a|b', 'c', 'a|c', 'b')[k]}", {}),
    "semicolons": ("file;tags", lambda k: f'{k}.png;"{("a;b", "c", "a;c", "b")[k]}"', {}),
    "commas": ("image,tags", lambda k: f'{k}.png,"{("a, b", "c", "a, c", "b")[k]}"', {}),
    "blanks": ("image,tags", lambda k: f"{k}.png,{('a b', 'c', 'a c', 'b')[k]}", {"separator": "blank"}),
    "columns": ("image,a,b,c", lambda k: f"{k},{('1,1,0', '0,0,1', '1,0,1', '0,1,0')[k]}", {}),
    "rows": (
        "image,class",
        lambda k: f"{k}.png,{'acab'[k]}" + ("", "", "\n2.png,c", "\n0.png,b")[k],
        {"separator": "rows"},
    ),
}


@pytest.mark.parametrize("form", MULTI_LABEL)
def test_tables_of_several_classes_of_an_image(tmp_path: Path, form: str) -> None:
    head, row, options = MULTI_LABEL[form]
    class_table(tmp_path, head, row)
    found = read_labels("auto", tmp_path, **options)
    assert [item.tags for item in found.items] == [("a", "b"), ("c",), ("a", "c"), ("b",)]
    assert found.scene_classes == ("a", "b", "c") and found.findings == ()
    assert all(item.scene is None for item in found.items)
    assert {"images may have several classes", "images of each class: a 2, b 2, c 2"} <= set(found.understood)
    if form == "columns":  # no class at all is an answer there
        text(tmp_path / "labels.csv", "image,a,b,c\n0,1,1,0\n1,0,0,0\n")
        assert read_labels("auto", tmp_path).items[1].tags == ()
    if form == "blanks":
        assert "a b" in read_labels("auto", tmp_path, separator="none").scene_classes
        with pytest.raises(
            ConfigError, match=r'separator: is "tab"; choose bar, semicolon, comma, blank, none or rows'
        ):
            read_labels("auto", tmp_path, separator="tab")


def test_several_classes_survive_compiling_and_become_questions_and_targets(tmp_path: Path) -> None:
    class_table(
        tmp_path / "set", "image,tags,split", lambda k: f"{k}.png,{('a|b', 'c', 'a|c', 'b')[k]},train"
    )
    compile_labels(
        tmp_path / "set", "auto", tmp_path / "out", synthesis=SynthesisConfig(questions_per_image=8)
    )
    labelled = read_labels("vitp", tmp_path / "out")
    assert [item.tags for item in labelled.items] == [("a", "b"), ("c",), ("a", "c"), ("b",)]
    rows = [
        json.loads(line)["conversations"]
        for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    ]
    answers = [turn["value"] for turn in rows[0]]
    assert "a, b" in answers and {"yes", "no"} <= set(answers)
    reader = LabelReader(labelled, "presence")
    assert reader.classes == ("a", "b", "c")
    assert reader.target(reader.sample(labelled.items[2])).classes_C.tolist() == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"classes of whole images; images with several classes need .*multi_label"
    ):
        labelled_only(labelled, "scene")


def test_a_column_of_patients_gives_the_groups(tmp_path: Path) -> None:
    class_table(tmp_path, "image,dx,patient_id", lambda k: f"{k}.png,{'ab'[k % 2]},p{k // 2}")
    found = read_labels("auto", tmp_path, val=0.5, test=0)
    assert [item.group for item in found.items] == ["patient-0001"] * 2 + ["patient-0002"] * 2
    assert found.items[0].split == found.items[1].split != found.items[2].split == found.items[3].split
    assert 'labels.csv: images of one "patient_id" are a group' in found.understood
    class_table(
        tmp_path,
        "image,dx,patient_id,split",
        lambda k: f"{k}.png,{'ab'[k % 2]},p{k // 2},{('train', 'val')[k % 2]}",
    )
    (line,) = read_labels("auto", tmp_path).findings
    assert line.startswith(
        "splits: the images are of 2 groups (such as patient-0001), and 2 of them are in several splits"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stats.csv", "file,size,description\na/a0.png,3,x\n"),
        ("notes.csv", "image,comment\nfoo.png,bar\nbar.png,foo\n"),
        ("meta.json", '[{"image": "a0.png", "text": "x"}]'),
        ("config.json", '{"lr.png": "0.1", "model.png": "vit"}'),
        ("sizes.csv", "name,label\nnobody.png,3\n"),
        ("scores.csv", "image,label\nfoo.png,a\nbar.png,b\n"),
    ],
)
def test_a_stray_table_beside_class_folders_labels_nothing(tmp_path: Path, name: str, content: str) -> None:
    for kind in "ab":
        for k in range(6):
            photo(tmp_path / kind / f"{kind}{k}.png")
    text(tmp_path / name, content)
    found = read_labels("auto", tmp_path)
    assert (
        found.scene_classes == ("a", "b")
        and len(found) == 12
        and all(not item.captions for item in found.items)
    )


def test_a_table_whose_images_are_not_there_is_named(tmp_path: Path) -> None:
    for k in range(6):
        photo(tmp_path / f"{k}.png")
    text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{k}.jpeg,A port.\n" for k in range(12)))
    with pytest.raises(DataError, match=r"captions.csv names images, but most of them aren't there .*0.jpeg"):
        detect_format(tmp_path)
    text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{k}.png,A port.\n" for k in range(16)))
    with pytest.raises(
        DataError, match=r"10 of 16 labelled images aren't there .*captions.csv:8.*-o partial=true"
    ):
        read_labels("captions", tmp_path)
    assert len(read_labels("captions", tmp_path, partial=True)) == 6


def test_captions_over_class_folders_say_that_there_are_both(tmp_path: Path) -> None:
    for kind in "ab":
        for k in range(3):
            photo(tmp_path / kind / f"{kind}{k}.png")
    text(
        tmp_path / "c.csv", "image,caption\n" + "".join(f"{s}{k}.png,{s}.\n" for s in "ab" for k in range(3))
    )
    found = detect(tmp_path)
    assert found.format == "captions" and "not read, but there, too: folders" in found.understood[0]


def test_a_table_of_other_things_makes_no_captions(tmp_path: Path) -> None:
    for k in range(4):
        photo(tmp_path / "images" / f"{k}.png")
        mask(tmp_path / "masks" / f"{k}.png")
    text(tmp_path / "images.csv", "image,kind,width\n0.png,stained,40\n")
    text(tmp_path / "dataset.json", '{"labels": {"0": "background"}, "numTraining": 4}')
    assert detect_format(tmp_path) == "masks"
    text(tmp_path / "captions.csv", "image,caption\n0.png,A port.\n")
    assert detect(tmp_path).format == "masks"
    assert "captions" in detect(tmp_path).understood[0]  # and says that there is more
    assert read_labels("captions", tmp_path).items[0].captions == ("A port.",)


def test_captions_keep_line_breaks_and_commas(tmp_path: Path) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    text(
        tmp_path / "c.csv",
        'image,caption\na.png,"A port,\nwith two ships."\nb.png,"He said ""ships""."\n\nc.png,"x"\n',
    )
    found = read_labels("auto", tmp_path)
    assert {Path(i.image).name: i.captions for i in found.items} == {
        "a.png": ("A port, with two ships.",),
        "b.png": ('He said "ships".',),
        "c.png": ("x",),
    }
    text(tmp_path / "c.csv", 'image,caption\na.png,"A port,\nwith ships."\nb.png,A port, with ships.\n')
    with pytest.raises(DataError, match=r"c.csv:4: has 3 cells, the head 2"):
        read_labels("auto", tmp_path)
    (tmp_path / "c.csv").unlink()
    text(tmp_path / "c.jsonl", '{"image": "a.png", "caption": "One\u2028two."}\n')
    assert read_labels("auto", tmp_path).items[0].captions == ("One two.",)


@pytest.mark.parametrize("missing", ["NA", "nan", "N/A", "NULL", "<NA>"])
def test_cells_that_say_that_there_is_nothing_are_no_class(tmp_path: Path, missing: str) -> None:
    class_table(tmp_path, "image,label", lambda k: f"{k}.png,{missing if k == 2 else 'ab'[k % 2]}")
    found = read_labels("auto", tmp_path)
    assert [item.scene for item in found.items] == ["a", "b", "b"] and found.scene_classes == ("a", "b")
    assert found.findings == ("labels.csv:4: 2.png has no class; left out",)
    named = read_labels("auto", tmp_path, classes=["a", "b", missing])
    assert [item.scene for item in named.items] == ["a", "b", missing, "b"]


def test_true_and_false_are_one_and_zero(tmp_path: Path) -> None:
    class_table(tmp_path, "image,cat,dog", lambda k: f"{k}.png,{k < 2},{k == 1}")
    found = read_labels("auto", tmp_path)
    assert [item.tags for item in found.items] == [("cat",), ("cat", "dog"), (), ()]


def test_paths_of_windows_are_those_of_the_images(tmp_path: Path) -> None:
    class_table(tmp_path, "image,label", lambda k: f"C:\\set\\pics\\{k}.png,{'ab'[k % 2]}")
    assert [item.scene for item in read_labels("auto", tmp_path).items] == ["a", "b", "a", "b"]


def test_two_columns_of_one_name_must_agree(tmp_path: Path) -> None:
    class_table(tmp_path, "image,label,label", lambda k: f"{k}.png,{'ab'[k % 2]},{'ab'[k % 2]}")
    assert len(read_labels("auto", tmp_path).items) == 4
    class_table(tmp_path, "image,label,label", lambda k: f"{k}.png,{'ab'[k % 2]},b")
    with pytest.raises(DataError, match='has "a" and "b" in two columns that are both called "label"'):
        read_labels("auto", tmp_path)
    with pytest.raises(DataError, match=r"labels.csv:2: has .* in two columns"):
        read_labels("classes", tmp_path, table="labels.csv", image_column="image", class_column="label")


def test_two_columns_of_one_name_that_nobody_reads_may_differ(tmp_path: Path) -> None:
    class_table(tmp_path, "image,label,score,score", lambda k: f"{k}.png,{'ab'[k % 2]},0.{k},{k % 2}")
    assert [item.scene for item in read_labels("auto", tmp_path).items] == ["a", "b", "a", "b"]
    class_table(tmp_path, "image,cat,dog,note,note", lambda k: f"{k}.png,{k % 2},1,x{k},y{k}")
    assert [item.tags for item in read_labels("auto", tmp_path).items] == [("dog",), ("cat", "dog")] * 2
    # What would be a class, and the patient, are read.
    class_table(tmp_path, "image,cat,dog,fox,fox", lambda k: f"{k}.png,{k % 2},1,{k // 2},0")
    with pytest.raises(
        DataError, match=r'labels.csv:4: has "1" and "0" in two columns that are both called "fox"'
    ):
        read_labels("auto", tmp_path)
    class_table(tmp_path, "image,label,patient,patient", lambda k: f"{k}.png,{'ab'[k % 2]},p{k},q{k}")
    with pytest.raises(DataError, match='has "p0" and "q0" in two columns that are both called "patient"'):
        read_labels("auto", tmp_path)


def test_captions_and_metadata_read_their_own_columns_alone(tmp_path: Path) -> None:
    class_table(tmp_path, "image,caption,size,size", lambda k: f"{k}.png,a dog {k},1,2")
    assert read_labels("captions", tmp_path).items[1].captions == ("a dog 1",)
    class_table(tmp_path, "image,caption,caption", lambda k: f"{k}.png,a dog,a cat")
    with pytest.raises(DataError, match=r'labels.csv:2: has "a dog" and "a cat" in two columns'):
        read_labels("captions", tmp_path)
    class_table(tmp_path, "image,label", lambda k: f"{k}.png,{'ab'[k % 2]}")
    (tmp_path / "metadata.csv").write_text("file_name,sensor,date,date\n0.png,S2,2024-05-31,2024-05-31\n")
    assert read_labels("classes", tmp_path, table="labels.csv").items[0].metadata["date"] == "2024-05-31"
    (tmp_path / "metadata.csv").write_text("file_name,sensor,size,size\n0.png,S2,1,2\n")
    assert read_labels("classes", tmp_path, table="labels.csv").items[0].metadata == {"sensor": "S2"}
    (tmp_path / "metadata.csv").write_text("file_name,date,date\n0.png,2024-05-31,2023-05-31\n")
    with pytest.raises(DataError, match=r'metadata.csv:2: has .* both called "date"'):
        read_labels("classes", tmp_path, table="labels.csv")
