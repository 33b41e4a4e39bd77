"""Rows of the benchmarks as they are published, for tests of the scorers and of whole runs.

Functions make a row of what matters to a test; pictures are PIL images. files() is what the hub would send.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from helpers import encoded, write_lines
from PIL import Image

Row = dict[str, Any]


def picture(width: int = 56, height: int = 56, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def base64_of(image: Image.Image) -> str:
    return base64.b64encode(encoded(image, "JPEG")).decode()


PICTURE = picture()
SCREEN = picture(640, 480, "grey")

# ---------------------------------------------------------------- mathematics

FRACTIONS = ["3/11", "8/11", "6/11", "3/5"]
META = {"category": "math-targeted-vqa", "context": "synthetic scene", "grade": "elementary school", "img_height": 6,
        "img_width": 8, "language": "english", "skills": ["arithmetic reasoning", "geometry reasoning"],
        "source": "IconQA", "split": "testmini", "task": "math word problem"}  # fmt: skip


def vista(answer, kind="text", choices=None, precision=None, **more):
    question_type = "multi_choice" if choices else "free_form"
    return {"pid": "7", "question": "What fraction is blue?", "image": "images/7.jpg", "decoded_image": picture(),
            "choices": choices, "unit": None, "precision": precision, "answer": answer, "question_type": question_type,
            "answer_type": kind, "metadata": META, "query": "Question: What fraction is blue?"} | more  # fmt: skip


def verse(answer, kind="multi-choice", version="Text Lite", problem="1", question="Find x.\nChoices:\nA:30\nB:45"):
    seen = "" if version == "Vision Only" else question
    return {"sample_index": f"{problem}-{version}", "problem_index": problem, "problem_version": version,
            "question": seen, "image": None if version == "Text Only" else picture(), "answer": answer,
            "question_type": kind, "metadata": {"split": "testmini", "source": "GEOS", "subject": "Plane Geometry",
            "subfield": "Angle"}, "query_wo": seen, "query_cot": seen, "question_for_eval": question}  # fmt: skip


FIVE = ["12", "15", "18", "20", "24"]


def vision(answer="B", options=(), **more):
    return {"id": "4", "question": "How many?\n<image1>", "options": list(options), "image": "images/4.jpg",
            "decoded_image": picture(), "answer": answer, "solution": None, "level": 2,
            "subject": "arithmetic"} | more  # fmt: skip


def we(key="2steps_1", answer="B", problem="p", **more):
    return {"ID": problem, "split": "testmini", "knowledge concept": "Area", "knowledge concept description": "Area",
            "question": "How large?", "option": "A. 1 cm; B. 2 cm; C. No correct answer", "answer": answer,
            "image_path": picture(), "key": key, "question number": 1} | more  # fmt: skip


def dyna(kind, truth, question_id="1", variant="1", **more):
    return {"question_id": question_id, "id": variant, "question": "What is it?", "ground_truth": truth,
            "answer_type": kind, "decoded_image": picture(), "subject": "algebra",
            "level": "high school"} | more  # fmt: skip


def logic(answer="A, C", skill=("inductive",)):
    return {"question_id": "v1_0", "image": picture(), "question": "Which fit? Select from A, B, C and D.",
            "answer": answer, "skill": list(skill)}  # fmt: skip


def geometry(answer="3"):
    return {"images": [picture()], "problem": "<image>Find x.", "answer": answer, "id": 1, "choices": ["3", "4"],
            "ground_truth": "A"}  # fmt: skip


MMK12 = {"id": "a", "question": "<image> Which?", "answer": "B", "subject": "physics", "image": picture()}

# ---------------------------------------------------------------- multiple choice

MMMU = {"id": "validation_Art_Theory_3", "question": "Which colour has <image 1>?",
        "options": "['red', 'blue', '<image 2>']", "answer": "A", "question_type": "multiple-choice",
        "explanation": "", "image_1": PICTURE, "image_2": PICTURE, "image_3": None, "img_type": "['Paintings']",
        "topic_difficulty": "Easy", "subfield": "Art"}  # fmt: skip
OPEN = MMMU | {"id": "validation_Math_15", "question": "What is <image 1>?", "options": "[]", "answer": "12.97",
               "question_type": "open"}  # fmt: skip
SHARED = ("id", "question", "explanation", "answer", "image_1", "image_2", "img_type", "topic_difficulty")
TEN = str([f"colour {i}" for i in range(10)])
PRO = {name: MMMU[name] for name in SHARED} | {"options": TEN, "subject": "Art_Theory"}
VISION = {"id": "test_History_1", "image": PICTURE, "options": "['w', 'x', 'y', 'z']", "answer": "A",
          "subject": "History"}  # fmt: skip
MMSTAR = {"index": 0, "question": "Which colour?\nOptions: A: red, B: blue, C: green, D: a very, very dark grey",
          "image": PICTURE, "answer": "B", "category": "coarse perception", "l2_category": "image emotion",
          "meta_info": {"source": "MMBench", "split": "val", "image_path": "1.jpg"}}  # fmt: skip
HALLUSION = {"category": "VD", "subcategory": "illusion", "visual_input": "1", "set_id": "0", "figure_id": "0",
             "sample_note": "circle", "question_id": "0", "question": "Is it red?", "gt_answer_details": "It is red.",
             "gt_answer": "1", "filename": "./VD/illusion/0_0.png", "image": PICTURE}  # fmt: skip
BLINK = {"idx": "val_Counting_1", "question": "How many?", "prompt": "How many? Select: (A) 1 (B) 2 (C) 3 (D) 4",
         "sub_task": "Counting", "image_1": PICTURE, "image_2": PICTURE, "image_3": None, "image_4": None,
         "choices": ["1", "2", "3", "4"], "answer": "(B)", "explanation": ""}  # fmt: skip
MMVP = {"Index": 1, "Question": "Is the door open?", "Options": "(a) Open (b) Closed", "Correct Answer": "(a)",
        "image": PICTURE}  # fmt: skip
BAG = {"text": "What is the color of the bag? (A) red (B) blue", "label": "B", "category": "direct_attributes",
       "image": SCREEN, "question_id": "7"}  # fmt: skip
COLOURS = {"index": 3, "question": "Which colour?", "A": "red", "B": "blue", "C": "green", "D": "yellow", "answer": "B",
           "category": "single", "cycle_category": "0", "image": base64_of(SCREEN)}  # fmt: skip


def mega(metrics, answer, parser="answer_string", context=None, **more):
    """A row of MEGA-Bench with weight 1 for every field."""
    info = {"field_score_function": metrics, "response_parse_function": parser,
            "aggregation": {"function": "mean", "field_weights": dict.fromkeys(metrics, 1)}} | more  # fmt: skip
    return {"task_name": "colours", "id": "7", "task_description": "Name the colour.",
            "example_text": "Example: <image>", "query_text": 'Now: <image>\nFinish with "Answer: ..."',
            "answer": json.dumps(answer), "global_media": "[]", "example_media": "['./a.png']",
            "query_media": "['./b.mp4']", "metric_info": str(info),
            "eval_context": json.dumps(context or {})}  # fmt: skip


# ---------------------------------------------------------------- videos

MME = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "url": "u",
       "videoID": "fFj", "question_id": "001-1", "task_type": "Counting Problem", "question": "How many?",
       "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C"}  # fmt: skip
LONG = {"id": "v_1", "video_id": "v", "video_path": "v.mp4", "subtitle_path": "v.json", "question": "What moves?",
        "option0": "a cat", "option1": "a dog", "option2": "a car", "option3": "a bus", "option4": "N/A",
        "correct_choice": 2, "duration": 14.0, "duration_group": 15, "question_category": "S2E"}  # fmt: skip
MLVU = {"video_name": "ego_1.mp4", "question": "Where is it?\n(A) left\n(B) right", "answer": "B", "task_type": "ego"}
STA = {"video": "AO8RW.mp4", "caption": "a person puts a cup down", "timestamp": [0.0, 10.0]}

# ---------------------------------------------------------------- judging, maps, captions

PAIR = {"id": "RLAIF-V-10", "query": "<image>\nWhat is red?", "response": ["A cup.", "A car."], "image": PICTURE,
        "human_ranking": [0, 1], "models": ["a", "b"], "query_source": "x"}  # fmt: skip
CITY = {"Line 1": ["甲站", "乙站（换乘站）", "丙站", "丁站", "戊站"], "Line 4": ["己站", "丙站", "庚站", "辛站"]}
SERVICE = "地铁1号线(甲--戊)"


def part(line: str, start: str, end: str, *via: str, **other: object) -> Row:
    return {"route_name": line, "departure_stop": start, "arrival_stop": end, "via_stops": list(via),
            "num_via_stops": len(via), **other}  # fmt: skip


MAP = {"country": "china", "city": "x", "json": CITY, "figure": PICTURE, "question_short": "How from 甲站 to 丁站?",
       "question_long": "How from 甲站 to 丁站? Number of Via Stops: ", "station_1": "甲站", "station_2": "丁站",
       "routes": {"1": [part(SERVICE, "甲", "丁", "乙", "丙")],
                  "2": [part(SERVICE, "甲", "丙", "乙"), part("地铁4号线", "丙", "丁")], "3": None},
       "difficulty_city": "easy", "difficulty_question": "hard", "question_transfer_count": 0}  # fmt: skip
PLUS = {"figure": PICTURE, "question": "Is it?", "answer": 1, "type": "TorF1", "difficulty_city": "hard"}
CRITIC = {"image": PICTURE, "changed_caption": "A car with orange license plates by a road.",
          "original_noun_phrases": ["yellow license plates"], "changed_noun_phrases": ["orange license plates"],
          "type": "color", "domain": "natural"}  # fmt: skip
ROUTE = "Route Name: Line 1\nDeparture Stop: 甲站\nArrival Stop: 丁站\nNumber of Via Stops: 2"

# ---------------------------------------------------------------- boxes

BUTTON = {"bbox": [0.4, 0.4, 0.6, 0.6], "image_width": 1000, "image_height": 500, "instruction": "open the menu",
          "data_type": "icon", "data_source": "ios", "file_name": "a.png"}  # fmt: skip
SAVE = {"image": SCREEN, "bbox": [256, 192, 384, 288], "img_size": [640, 480], "ui_type": "text",
        "instruction": "save", "group": "Office"}  # fmt: skip
DOG = {"question_id": "1", "image": SCREEN, "answer": ["the dog", "dog on the left"], "bbox": [100, 100, 200, 100]}
SHAPES = [{"label": "target", "points": [[64, 48], [320, 48], [320, 240]]}]
R1 = {"image": "COCO_train2014_1.jpg", "problem": "Where is the dog?", "solution": [100, 100, 300, 200]}


def query(boxes: list[list[float]], **more: object) -> Row:
    return {"image": "1.jpg", "image_id": 1, "width": 1000, "height": 500, "category": "cat", "boxes": boxes,
            "crowd": [], "asked": True, **more}  # fmt: skip


def instances() -> Row:
    """COCO's annotations: a picture with a file name, one with an address; a cat beside a crowd of them, and a dog."""
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 640, "height": 480},
                   {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/2.jpg", "width": 64, "height": 48}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0},
                        {"image_id": 1, "category_id": 7, "bbox": [5, 6, 7, 8], "iscrowd": 1},
                        {"image_id": 2, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 3, "name": "person"}],
    }  # fmt: skip


PETS = {"dataset_name": "Aquarium", "image_id": 0, "image": SCREEN, "image_width": 200, "image_height": 100,
        "categories": ["cat", "dog"], "bboxes": [[10, 10, 50, 50], [100, 20, 180, 80]],
        "labels": ["cat", "dog"]}  # fmt: skip

# ---------------------------------------------------------------- texts and numbers

CHART = {"type": "augmented_test", "question": "How many?", "answer": "12", "image": SCREEN}
BRAND = {"image_id": "1", "question_id": 1, "question": "which brand?", "image": SCREEN, "answers": ["nokia"] * 10}
SIGN = {"dataset": "IIIT5K", "question": "what is written in the image?", "answer": ["CENTRE"],
        "question_type": "Regular Text Recognition", "image": SCREEN}  # fmt: skip
DOGS = {"image": SCREEN, "text": "two dogs", "question": "How many dogs?", "number": 2}
CLEVR = {"image_path": "./images/superCLEVR_new_025000.png", "question": "How many different items?",
         "ground_truth": 4}  # fmt: skip

# ---------------------------------------------------------------- files


def hub(split: str, *rows: Row) -> dict[str, Any]:
    """The file of a split in a data set as `hf download` fetches it."""
    return {f"data/{split}-00000-of-00001.parquet": list(rows)}


def published(folder: Path, files: dict[str, Any]) -> None:
    """Write name -> content below the folder: rows by the ending, pictures, animations, texts; "name/": frames."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
            for number, frame in enumerate(content, 1):
                frame.save(path / f"{number:06d}.jpg")
        elif isinstance(content, Image.Image):
            content.save(path)
        elif path.suffix == ".gif":
            content[0].save(path, save_all=True, append_images=content[1:], duration=500)
        elif path.suffix == ".parquet":
            parquet(path, content)
        elif path.suffix == ".jsonl":
            write_lines(path, content)
        else:
            path.write_text(text_of(path.suffix, content), encoding="utf-8")


def text_of(ending: str, content: Any) -> str:
    if ending == ".json":
        return json.dumps(content)
    if ending == ".tsv":
        return "".join("\t".join(map(str, cells)) + "\n" for cells in [content[0], *(row.values() for row in content)])
    return content


def parquet(path: Path, rows: list[Row]) -> None:
    """As `datasets` writes it: pictures as bytes and path, absent cells null."""
    import pyarrow
    import pyarrow.parquet

    def cell(value: Any) -> Any:
        if isinstance(value, Image.Image):
            return {"bytes": encoded(value), "path": "picture.png"}
        return [cell(item) for item in value] if isinstance(value, list) else value

    columns = {name: None for row in rows for name in row}
    table = [columns | {name: cell(value) for name, value in row.items()} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
