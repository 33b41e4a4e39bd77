"""Pictures with boxes, in the layouts of Pascal VOC and COCO, turned into questions; and plain pictures."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from common.data import Sample, hash_fraction
from common.errors import SightRLError, bad_row
from common.pictures import load_image
from common.readers.shared import PICTURES, Options, folder_of, in_split, locate, shown, split_place, wrap
from common.readers.splits import SHARES, cut, official_part


@dataclass
class Annotated:
    """One picture with the boxes drawn on it, in pixels of the original."""

    name: str  # file name
    path: Path
    size: tuple[int, int]  # width, height
    boxes: list[tuple[str, tuple[int, int, int, int]]]  # label, (x1, y1, x2, y2)
    unsure: set[str]  # labels with an unusable or crowd box: nothing is asked about them
    where: str


# -------------------------------------------------------------------------------------------------- questions
def box_text(box: Sequence[Any]) -> str:
    return "[" + ", ".join(map(str, box)) + "]"


def spot(box: Sequence[float], size: tuple[int, int]) -> str:
    """Where the centre of a box lies: "upper left", "centre", "lower middle", ..."""
    x, y = (box[0] + box[2]) / 2 / size[0], (box[1] + box[3]) / 2 / size[1]
    row = ("upper", "middle", "lower")[min(2, int(3 * y))]
    side = ("left", "middle", "right")[min(2, int(3 * x))]
    return "centre" if row == side else side if row == "middle" else f"{row} {side}"


def detection_samples(picture: Annotated, rare: Sequence[str]) -> list[Sample]:
    """Questions about one picture: count and detect every label, locate what is there exactly once.

    The number of one label that is absent is asked too, chosen by the hash of the picture's name: counts
    start at 0.
    """
    by_label: dict[str, list] = defaultdict(list)
    for label, box in sorted(picture.boxes, key=lambda pair: pair[1][:2]):  # from left to right
        by_label[label].append(box)
    others = set(rare) - set(by_label) - picture.unsure
    absent = sorted(others, key=lambda label: (hash_fraction(f"{picture.name}:{label}"), label))[:1]
    asked = [label for label in [*by_label, *absent] if label not in picture.unsure]
    return [sample for label in asked for sample in label_samples(picture, label, by_label.get(label, []))]


def label_samples(picture: Annotated, label: str, boxes: list[tuple[int, int, int, int]]) -> list[Sample]:
    """The questions about one label, whose boxes come from left to right."""
    seen = f"There is no {label}."
    if boxes:
        centres = ", ".join(f"({(x1 + x2) // 2}, {(y1 + y2) // 2})" for x1, y1, x2, y2 in boxes)
        seen = f"From left to right, {label} at {centres}: that makes {len(boxes)}."
    # kind, question, answer, answer type, thought
    rows = [("count", f"How many {label} are in the picture?", str(len(boxes)), "number", seen)]
    if boxes:
        listing = json.dumps([{"bbox_2d": list(box), "label": label} for box in boxes])
        form = f'{{"bbox_2d": [x1, y1, x2, y2], "label": "{label}"}}'
        question = f"Find every {label} in the picture. Answer with a JSON list of {form} in pixels."
        rows.append(("detect", question, listing, "boxes", seen))
    if len(boxes) == 1:
        question = f"Where is the {label}? Give its bounding box [x1, y1, x2, y2] in pixels."
        thought = f"The only {label} is in the {spot(boxes[0], picture.size)} of the picture."
        rows.append(("locate", question, box_text(boxes[0]), "box", thought))
    known = {"size": list(picture.size), "boxes": [[name, list(box)] for name, box in picture.boxes]}
    samples = []
    for kind, question, answer, answer_type, thought in rows:
        meta = known | {"label": label, "response": wrap(thought, answer)}
        name = f"{Path(picture.name).stem}:{kind}:{label}"
        samples.append(Sample(name, question, answer, kind, [picture.path], answer_type, meta, picture.where))
    return samples


Questions = tuple[list[Sample], list[str]]  # and the task of each


def rare_labels(pictures: list[Annotated], labels: Iterable[str]) -> list[str]:
    """Labels on at most nine pictures in ten; where one of the others is missing, it was forgotten."""
    counts = Counter(label for picture in pictures for label in {label for label, _ in picture.boxes})
    return sorted(label for label in set(labels) if counts[label] <= 0.9 * len(pictures))


def ask_about(pictures: list[Annotated], rare: list[str], split: str, shares: dict[str, float]) -> Questions:
    """Questions about the pictures of the split."""
    parts = cut((picture.name for picture in pictures), shares)
    chosen = [picture for picture in pictures if not shares or parts[picture.name] == split]
    samples = [sample for picture in chosen for sample in detection_samples(picture, rare)]
    return samples, [sample.task for sample in samples]


# ------------------------------------------------------------------------------------------------------ boxes
def clean_box(numbers: Sequence[Any], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Whole pixels, clipped to the picture; None if nothing is left."""
    try:
        x1, y1, x2, y2 = (round(float(v)) for v in numbers)
    except (TypeError, ValueError, OverflowError):
        return None
    x1, x2 = (min(max(v, 0), size[0]) for v in (x1, x2))
    y1, y2 = (min(max(v, 0), size[1]) for v in (y1, y2))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def clean_label(text: str, where: str) -> str:
    """A label on one line. Raises SightRLError for one that would be more than a word of the question to the model."""
    label = " ".join(text.split())
    if len(label) > 200 or "<image>" in label or "<|" in label or not label.isprintable():
        raise SightRLError(f"{where}: the label {shown(label)!r} is no name of a thing; rename it.")
    return label


def add_box(picture: Annotated, label: str, numbers: Sequence[Any], options: Options) -> None:
    """Add a box, or mark its label as unsure in this picture and note it."""
    box = clean_box(numbers, picture.size)
    if box is not None:
        picture.boxes.append((label, box))
        return
    picture.unsure.add(label)
    what = f"the {label} box {shown(box_text(numbers))} encloses nothing"
    options.notes.append(f"{picture.where}: {what}, so no question about {label} is asked on {picture.name}.")


# ------------------------------------------------------------------------------------------------- Pascal VOC
def read_voc_file(file: Path, images: Path, options: Options) -> Annotated:
    """One Annotations/*.xml. Raises SightRLError."""
    try:
        data = file.read_bytes()
        if any(mark in data.replace(b"\0", b"") for mark in (b"<!DOCTYPE", b"<!ENTITY")):  # zeros: UTF-16
            raise ValueError("it declares entities")
        tree = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise bad_row(f"{file} is no readable XML ({shown(error)})", "correct it") from None
    # The file's own name counts: <filename> is often that of an older version.
    names = [file.stem + end for end in PICTURES] + [Path(tree.findtext("filename") or "none").name]
    path = next((images / name for name in names if (images / name).is_file()), None)
    if path is None:
        raise bad_row(f"{file}: there is no picture {file.stem}.* in {images}", "add the file")
    numbers = [(tree.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    size = tuple(int(v) for v in numbers if re.fullmatch(r"[0-9]{1,9}", v) and int(v) > 0)
    size = size if len(size) == 2 else load_image(path, str(file)).size
    picture = Annotated(file.stem, path, size, [], set(), str(file))
    for thing in tree.iter("object"):
        label = clean_label(thing.findtext("name") or "object", picture.where)
        box = [thing.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        add_box(picture, label, box, options)
    return picture


def voc_folders(place: str) -> tuple[Path, Path]:
    """The folder with Annotations, perhaps one folder deeper, and that of the pictures. Or SightRLError."""
    folder = folder_of(place, "a folder with Annotations and JPEGImages")
    base = next((d for d in [folder, *sorted(folder.iterdir())] if (d / "Annotations").is_dir()), folder)
    for name in ("JPEGImages", "images", "Images"):
        if (base / name).is_dir() and (base / "Annotations").is_dir():
            return base, base / name
    raise SightRLError(f"{folder} has no Annotations and JPEGImages folders; give the folder that holds both.")


def read_voc(place: str, options: Options) -> Questions:
    """voc:DIR: Annotations/*.xml, JPEGImages/ and, if there, ImageSets/Main/{train,val,test}.txt.

    The lists in ImageSets/Main are the splits; without them, pictures are cut by name. Boxes stay as
    published.
    """
    base, images = voc_folders(place)
    lists = {f.stem: f for f in base.glob("ImageSets/Main/*.txt") if f.stem in ("train", "val", "test")}
    part, shares = official_part(list(lists) or ["all"], options.split, str(base / "ImageSets/Main"))
    wanted = set(lists[part].read_text("utf-8", "replace").split()) if lists else None
    pictures = []
    for file in sorted((base / "Annotations").glob("*.xml")):
        try:
            pictures.append(read_voc_file(file, images, options))
        except SightRLError as error:
            options.leave_out(error)
    chosen = [picture for picture in pictures if wanted is None or picture.name in wanted]
    rare = rare_labels(pictures, (label for picture in pictures for label, _ in picture.boxes))
    return ask_about(chosen, rare, options.split, shares)


# ------------------------------------------------------------------------------------------------------- COCO
def coco_root(file: Path, first: str) -> Path:
    """Folder of a COCO file's pictures, found by the first of them: beside it, in images/, in train2017/."""
    base = file.parent.parent
    folders = [file.parent, file.parent / "images", base / "images", base, base / file.stem.split("_")[-1]]
    return next((folder for folder in folders if first and (folder / first).is_file()), file.parent)


def read_coco(place: str, options: Options) -> Questions:
    """coco:FILE.json[,IMAGEDIR]: a COCO instances file; boxes [x, y, width, height] become [x1, y1, x2, y2].

    A folder with train/, valid/ and test/, each with an _annotations.coco.json, has official splits; a single
    file is cut by the names of its pictures. Labels with a crowd region are not asked about on that picture.
    """
    path, image_dir = split_place(place)
    files = {f.parent.name: f for f in sorted(path.glob("*/*.coco.json"))} if path.is_dir() else {}
    if not files and not path.is_file():
        problem = "does not exist or holds no COCO file; give the path of an instances JSON file"
        raise SightRLError(f"{path} {problem}.")
    part, shares = official_part(list(files) or ["all"], options.split, str(path))
    file = files.get(part, path)
    try:
        data = json.loads(file.read_bytes())
        labels = {c["id"]: clean_label(str(c["name"]), str(file)) for c in data["categories"]}
        by_picture: dict[Any, list] = defaultdict(list)
        for annotation in data["annotations"]:
            by_picture[annotation["image_id"]].append(annotation)
        records = [(r["id"], str(r["file_name"]), int(r["width"]), int(r["height"])) for r in data["images"]]
        records = [record for record in records if by_picture[record[0]] is not None]  # an id must be a possible key
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        said = shown(f"{type(error).__name__}: {error}")
        problem = f"is no COCO file with images, annotations and categories ({said})"
        raise SightRLError(f"{file} {problem}; give an instances JSON file.") from None
    root = image_dir or coco_root(file, records[0][1] if records else "")
    pictures = []
    for number, name, width, height in records:
        where = f"{file} image {shown(number)}"
        try:
            picture = Annotated(name, locate(name, root, options, where), (width, height), [], set(), where)
            for annotation in by_picture[number]:
                add_coco_box(picture, annotation, labels, options)
            pictures.append(picture)
        except SightRLError as error:
            options.leave_out(error)
    return ask_about(pictures, rare_labels(pictures, labels.values()), options.split, shares)


def add_coco_box(picture: Annotated, annotation: dict, labels: dict[Any, str], options: Options) -> None:
    """Add one annotation to its picture. Raises SightRLError for an unknown category or no box."""
    kind, box = annotation.get("category_id"), annotation.get("bbox")
    label = labels.get(kind) if isinstance(kind, (int, float, str)) else None
    four = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if label is None or not four:
        problem = f"annotation {shown(annotation.get('id'))} has no known category or no [x, y, width, height]"
        raise bad_row(f"{picture.where}: {problem}", "correct it")
    if annotation.get("iscrowd"):
        picture.unsure.add(label)
    else:
        add_box(picture, label, [box[0], box[1], box[0] + box[2], box[1] + box[3]], options)


# --------------------------------------------------------------------------------------------- plain pictures
def read_images(place: str, options: Options) -> Questions:
    """images:DIR: all pictures in a folder and its subfolders, no questions, for methods without labels.

    Cut by file name.
    """
    folder = folder_of(place, "a folder with pictures")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES and f.is_file())
    names = [str(f.relative_to(folder)) for f in files]
    samples = [Sample(n, "", "", "image", [f], where=str(f)) for n, f in zip(names, files, strict=True)]
    chosen = in_split(samples, names, options.split, SHARES)
    return chosen, [sample.task for sample in chosen]
