"""The page in headless Chromium, from a file: drawing, answers, layers, evidence; no request."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions import interaction
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import jaxmnist
from jaxmnist import TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.export.network import trained_network
from jaxmnist.inference import pictures
from jaxmnist.models import model_of
from jaxmnist.page import make_page
from jaxmnist.runs.setup import make_setup
from tests.conftest import OWN, SCRIPTS, drawn_variables, golden_variables, trained_variables

pytestmark = pytest.mark.slow

# Points of a stroke, from the middle of the paper, in sides of it.
ONE = [(0.05, -0.35), (0.0, 0.0), (-0.03, 0.35)]
THREE = [
    *((-0.2, -0.3), (0.0, -0.36), (0.18, -0.28), (0.16, -0.1), (-0.02, 0.0)),
    *((0.2, 0.1), (0.2, 0.28), (0.0, 0.37), (-0.22, 0.3)),
]
SEVEN = [(-0.22, -0.32), (0.22, -0.34), (0.08, 0.0), (0.0, 0.34)]
# How long to wait for what must come, in seconds.
PATIENCE = 20


@pytest.fixture(scope="module")
def make_run(small_idx_dir, tmp_path_factory):
    """Writes a finished run with given variables."""
    folder = tmp_path_factory.mktemp("runs")

    def make_run(config, variables):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data.idx, "SHA256", {})
            setup = make_setup(config, jaxmnist.RunOptions(idx_dir=small_idx_dir))
        # Of the images that it was trained on.
        setup = setup._replace(facts={**setup.facts, "normalisation": (0.1307, 0.3081)})
        return imported.write_run(setup, variables, folder / config.variant, Path("weights"))

    return make_run


@pytest.fixture(scope="module")
def runs(make_run):
    """A network that reads digits, and two that have learnt nothing."""
    untrained = ("less_params", "dropout")
    return [
        *(make_run(TrainConfig(name), golden_variables(name)) for name in untrained),
        make_run(TrainConfig("gap"), trained_variables()),
    ]


@pytest.fixture(scope="module")
def images(small_idx_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.idx, "SHA256", {})
        return data.load("mnist", idx_dir=small_idx_dir)


@pytest.fixture(scope="module")
def write_page(tmp_path_factory):
    """Writes a page; returns its address."""
    folder = tmp_path_factory.mktemp("pages")

    def write_page(page, name="page"):
        (folder / f"{name}.html").write_text(page)
        return (folder / f"{name}.html").as_uri()

    return write_page


@pytest.fixture(scope="module")
def address(runs, images, write_page):
    """Of a page that is there for all tests."""
    return write_page(make_page(runs, images))


@pytest.fixture(scope="module")
def start_browser():
    """Starts headless Chromium, on a computer or on a phone."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("Chromium is not installed (Debian: apt install chromium chromium-driver)")
    drivers = []

    def start_browser(width, height, **emulation):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for word in (
            *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync"),
            *("disable-background-networking", "disable-component-update", "disable-dev-shm-usage"),
            f"window-size={width},{height}",
        ):
            options.add_argument(f"--{word}")
        if emulation:
            options.add_experimental_option("mobileEmulation", emulation)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        drivers.append(driver)
        return driver

    yield start_browser
    for driver in drivers:
        driver.quit()


@pytest.fixture(scope="module")
def desktop(start_browser):
    return start_browser(1280, 900)


@pytest.fixture(scope="module")
def phone(start_browser):
    """The height is what the browser's own bars leave of 844."""
    metrics = {"width": 390, "height": 660, "pixelRatio": 2, "touch": True}
    return start_browser(390, 660, deviceMetrics=metrics)


class Page:
    """What one sees and does."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        driver.get_log("performance")
        driver.get(address)
        self.wait(lambda: self.all("body[data-ready]"))

    def wait(self, condition):
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def call(self, function, *arguments):
        """Calls one of `window.jaxmnist`; typed arrays come back as lists."""
        code = (
            "const [name, ...given] = arguments;"
            "const plain = (key, value) => ArrayBuffer.isView(value) ? [...value] : value;"
            "return JSON.stringify(window.jaxmnist[name](...given), plain)"
        )
        return json.loads(self.driver.execute_script(code, function, *arguments))

    @property
    def status(self):
        return self.one("#status").text

    def answers(self):
        """The digit that each network reads."""
        return [answer.text for answer in self.all(".answer b")]

    def highest_bars(self):
        """The digit of each network's longest bar, by its length on the screen."""
        heights = self.driver.execute_script("""
            return [...document.querySelectorAll(".row")].map((row) =>
              [...row.querySelectorAll("i")].map((bar) => bar.getBoundingClientRect().height));""")
        return [str(np.argmax(row)) for row in heights if max(row) > 0]

    def wait_for(self, digit):
        """Until the network that can read reads this."""
        self.wait(lambda: self.answers()[-1] == str(digit))
        assert self.highest_bars()[-1] == str(digit)

    def wait_for_nothing(self):
        """Until nothing is read, and nothing is shown of what was."""
        self.wait(lambda: set(self.answers()) == {"\N{EN DASH}"})
        assert self.highest_bars() == []
        assert self.ink() == 0
        assert self.ink(".map canvas") == 0

    def ink(self, canvas="#seen"):
        """The mean of a picture's green, from 0 to 255, times its pixels.

        The page draws what has changed in the next frame, so this is read after that frame.
        """
        return self.driver.execute_async_script(
            """
            const [selector, done] = arguments;
            requestAnimationFrame(() => {
              const source = document.querySelector(selector);
              const context = document.createElement("canvas").getContext("2d");
              context.drawImage(source, 0, 0);
              const {data} = context.getImageData(0, 0, source.width, source.height);
              done(data.reduce((sum, value, k) => sum + (k % 4 === 1 ? value : 0), 0) / 255);
            });""",
            canvas,
        )

    def seen(self):
        """The 28 x 28 picture: uint8 `[784]`."""
        return self.driver.execute_script("""
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(document.getElementById("seen"), 0, 0);
            const {data} = context.getImageData(0, 0, 28, 28);
            return Array.from({length: 784}, (_, place) => data[4 * place]);""")

    def draw(self, stroke, lift=True):
        """With the mouse."""
        actions = ActionChains(self.driver, duration=20)
        first, *rest = self.on_paper(stroke)
        actions.move_to_element_with_offset(self.paper, *first).click_and_hold()
        for point in rest:
            actions.move_to_element_with_offset(self.paper, *point)
        (actions.release() if lift else actions).perform()

    @property
    def paper(self):
        return self.one("#paper")

    def on_paper(self, stroke):
        side = self.paper.size["width"]
        return [(round(x * side), round(y * side)) for x, y in stroke]

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def press_with_control(self, key):
        actions = ActionChains(self.driver)
        actions.key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def focused(self):
        return self.driver.switch_to.active_element

    def check_quiet(self):
        """No message on the console, and no request but that of the page itself."""
        assert self.driver.get_log("browser") == []
        events = [json.loads(line["message"]) for line in self.driver.get_log("performance")]
        asked = [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]
        assert {url for url in asked if not url.startswith("data:")} == {self.address}


# ---- Drawing


def test_a_digit_is_read_while_it_is_drawn(desktop, address):
    page = Page(desktop, address)
    page.wait_for_nothing()
    assert page.status == "Draw with mouse, finger or keys."
    page.draw(SEVEN, lift=False)
    page.wait_for(7)
    assert page.ink() > 20
    assert page.ink(".map canvas") > 20
    ActionChains(desktop).release().perform()
    page.wait_for(7)
    assert "gap reads 7" in page.status or page.status == "All read 7."
    page.check_quiet()


def test_clear_and_undo(desktop, address):
    page = Page(desktop, address)
    undo, clear = page.one("#undo"), page.one("#clear")
    assert [each.get_attribute("aria-disabled") for each in (undo, clear)] == ["true", "true"]
    page.draw(ONE)
    page.wait_for(1)
    assert [each.get_attribute("aria-disabled") for each in (undo, clear)] == ["false", "false"]
    clear.click()
    page.wait_for_nothing()
    assert clear.get_attribute("aria-disabled") == "true"
    clear.click()  # of nothing, it is no step that could be undone
    page.draw(THREE)
    page.wait_for(3)
    undo.click()
    page.wait_for_nothing()
    undo.click()  # the paper is as it was before it was cleared
    page.wait_for(1)
    undo.click()
    page.wait_for_nothing()
    assert undo.get_attribute("aria-disabled") == "true"
    page.check_quiet()


def test_a_digit_is_drawn_by_touch_on_a_phone(phone, address):
    page = Page(phone, address)
    finger = PointerInput(interaction.POINTER_TOUCH, "finger")
    actions = ActionChains(phone, duration=8, devices=[finger])
    first, *rest = page.on_paper(THREE)
    actions.move_to_element_with_offset(page.paper, *first).click_and_hold()
    for point in rest:
        actions.move_to_element_with_offset(page.paper, *point)
    actions.release().perform()
    page.wait_for(3)
    # The finger has drawn, not scrolled; and an answer is in sight.
    seen = "return [scrollY, document.querySelector('.row').getBoundingClientRect().bottom]"
    scrolled, bottom = phone.execute_script(seen)
    assert scrolled == 0
    assert bottom < 660
    # A pixel of a map is tapped, with the paper and the outline in sight.
    tap = ActionChains(phone, devices=[finger])
    phone.execute_script("arguments[0].scrollIntoView({block: 'end'})", page.all(".map canvas")[0])
    tap.move_to_element(page.all(".map canvas")[0]).click().perform()
    page.wait(lambda: page.one("#outline").is_displayed())
    assert 0 <= page.one("#outline").rect["y"] - phone.execute_script("return scrollY") < 660
    page.one("#clear").click()
    page.wait_for_nothing()
    page.check_quiet()


def test_the_keyboard_alone_suffices(desktop, address):
    page = Page(desktop, address)
    page.press(Keys.TAB)
    assert page.focused() == page.paper
    up, down, left, right = Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_RIGHT
    page.press(*[left] * 5, Keys.SPACE, *[down] * 8, *[right] * 9, Keys.SPACE)
    ink = page.ink()
    assert ink > 20
    page.press(*[up] * 7, left)  # lifted: nothing is drawn
    assert page.ink() == ink
    page.press(Keys.SPACE, *[down] * 15, Keys.SPACE)
    page.wait_for(4)
    page.press_with_control("z")
    page.wait(lambda: page.ink() == ink)
    page.press(Keys.TAB)
    assert page.focused() == page.one("#undo")
    page.press(Keys.ENTER)
    page.wait_for_nothing()
    assert page.focused() == page.one("#undo")
    example = page.all("#hard button")[0]
    page.wait(lambda: page.press(Keys.TAB) or page.focused() == example)
    page.press(Keys.ENTER)
    page.wait(lambda: page.status.startswith("Test image"))
    page.press(Keys.DELETE)
    page.wait_for_nothing()
    page.press_with_control("z")
    page.wait(lambda: page.status.startswith("Test image"))
    maps = page.all(".maps")[2]
    page.wait(lambda: page.press(Keys.TAB) or page.focused() == maps)
    page.press(up, up, left)
    assert page.one("#field").text.startswith("Row 5, column 6 after step 3 sees ")
    page.check_quiet()


def test_a_drawing_that_is_no_digit_has_a_reason(desktop, address):
    page = Page(desktop, address)
    page.draw([(-0.45, -0.4), (-0.45, -0.4)])
    page.draw([(0.45, 0.4), (0.45, 0.4)])
    page.wait(lambda: page.status.startswith("Not read: "))
    page.wait_for_nothing()
    page.check_quiet()


def test_an_example_is_shown_as_the_networks_read_it(desktop, address, images):
    page = Page(desktop, address)
    example = page.all("#hard button")[0]
    name = example.get_attribute("title")
    number, digit = re.fullmatch(r"Test image (\d+), an? (\d)", name).groups()
    example.click()
    page.wait(lambda: page.status.startswith(f"{name}. "))
    assert page.seen() == images.test_images[int(number)].ravel().tolist()
    rows = page.all(".row")
    assert "wrong" in " ".join(row.get_attribute("class") for row in rows)
    for row, answer in zip(rows, page.answers(), strict=True):
        right = row.get_attribute("class") == "row right"
        assert right == (answer.startswith(digit))
    # With a stroke over it, its digit is not known any more.
    page.draw(ONE)
    page.wait(lambda: not page.all(".row.wrong, .row.right"))
    page.check_quiet()


# ---- What the networks compute


def test_the_page_computes_what_jax_computes(desktop, address, runs, images):
    page = Page(desktop, address)
    rng = np.random.default_rng(0)
    digits = [*images.test_images[:10], *rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)]
    described = desktop.execute_script(
        "return jaxmnist.networks.map((each) => [each.name, each.parameters, each.accuracy])"
    )
    assert described == [
        [run.config.name, run.summary["parameters"], run.summary["final_test_accuracy"][0]]
        for run in runs
    ]
    for run in runs:
        network = trained_network(run)
        expected = network.logits(np.stack(digits))
        found = [page.call("predict", run.config.name, each.ravel().tolist()) for each in digits]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        *_, last = page.call("layers", run.config.name, digits[0].ravel().tolist())
        assert last["shape"] == [1, 1, 10]
        np.testing.assert_allclose(last["values"], expected[0], rtol=0, atol=1e-4)


def test_evidence_is_the_gradient_of_the_logit(desktop, address, runs, images):
    run = next(run for run in runs if run.config.name == "gap")
    network, model = trained_network(run), jaxmnist.create_model("gap")
    page = Page(desktop, address)
    rng = np.random.default_rng(0)
    for digit in (3, 8):
        image = rng.integers(0, 256, (1, 28, 28), dtype=np.uint8)
        found = page.call("saliency", "gap", image.ravel().tolist(), digit)
        expected = jax.grad(lambda x, k: model.apply(network.variables, x)[0, k])(
            network.normalise(image), digit
        )
        np.testing.assert_allclose(found, expected.ravel(), rtol=0, atol=1e-4)


def test_a_button_shows_what_speaks_for_and_against(desktop, address):
    page = Page(desktop, address)
    page.draw(THREE)
    page.wait_for(3)
    pixels = page.seen()
    evidence = np.array(page.call("saliency", "gap", pixels, 3))
    page.one("#evidence").click()
    assert page.one("#evidence").get_attribute("aria-pressed") == "true"
    legend = page.one("#legend").text.split("\n")
    assert [line.strip() for line in legend] == ["more ink speaks for 3", "against 3"]
    colours = np.array(
        page.driver.execute_script("""
        const {data} = document.getElementById("seen").getContext("2d").getImageData(0, 0, 28, 28);
        return [...data];""")
    ).reshape(784, 4)
    strong = np.abs(evidence) > 0.3 * np.abs(evidence).max()
    is_blue = colours[:, 2] > colours[:, 0]
    np.testing.assert_array_equal(is_blue[strong], evidence[strong] > 0)
    page.one("#evidence").click()
    assert page.seen() == pixels
    assert not page.one("#legend").is_displayed()
    page.check_quiet()


def test_a_drawing_is_prepared_as_in_python(desktop, address):
    page = Page(desktop, address)
    greys = np.full((140, 140), 255, np.uint8)
    greys[20:120, 60:75] = 0
    found = page.call("prepare", greys.ravel().tolist(), 140, 140)
    expected = pictures.prepare(greys.astype(float)).ravel().astype(int)
    assert np.abs(np.array(found) - expected).max() <= 1


# ---- Layers


def test_the_chosen_network_shows_its_layers(desktop, address):
    page = Page(desktop, address)
    page.draw(THREE)
    page.wait_for(3)
    steps = [step.text.replace("\u00d7", "x").split("\n") for step in page.all(".step")]
    assert steps[0] == [
        *("3 x 3 convolution, ReLU, normalisation", "4 maps of 26 x 26", "44 parameters"),
        "sees 3 x 3 pixels",
    ]
    assert steps[2] == [
        *("2 x 2 max-pooling", "8 maps of 12 x 12", "no parameters", "sees 6 x 6 pixels"),
    ]
    assert len(steps) == 10
    counts = [re.search(r"(no|[\d,]+) parameters", " ".join(step))[1] for step in steps]
    assert sum(int(count.replace(",", "")) for count in counts if count != "no") == 7364
    assert len(page.all(".map")) == 4 + 8 + 8 + 10 + 16 + 16 + 18 + 18 + 16
    assert page.one(".score.highest").text.startswith("3")
    page.all(".row")[0].click()
    page.wait(lambda: page.one(".inside h2").text == "Inside less_params")
    assert len(page.all(".step")) == 9
    assert page.all(".row input")[0].is_selected()
    page.check_quiet()


def test_each_kind_of_layer_has_a_name(desktop, make_run, write_page):
    config = TrainConfig("own", network=OWN)
    run = make_run(config, drawn_variables(model_of(config), "own"))
    page = Page(desktop, write_page(make_page([run]), "own"))
    page.draw(THREE)
    page.wait(lambda: page.ink(".map canvas") > 20)
    assert [title.text.replace("\u00d7", "x") for title in page.all(".step h3")] == [
        "5 x 5 convolution, addition of the image",
        "3 x 3 convolution with stride 3, ReLU",
        "3 x 3 depthwise convolution, normalisation in 2 groups, ReLU",
        "1 x 1 convolution, layer normalisation" + 2 * ", addition of earlier maps",
        "3 x 3 depthwise convolution with stride 2, normalisation",
        "2 x 2 max-pooling",
        "1 x 1 convolution, normalisation, ReLU",
        "Maximum of 3 x 3, addition of earlier maps",
        "1 x 1 convolution",
        "Average of 1 x 1",
    ]
    page.check_quiet()


@pytest.mark.parametrize(("step", "side"), [(1, 26), (3, 12), (7, 6)])
def test_a_pixel_of_a_map_outlines_what_it_sees(desktop, address, step, side):
    page = Page(desktop, address)
    page.draw(THREE)
    page.wait_for(3)
    canvas = page.all(f"li:nth-child({step}) .map canvas")[1]
    desktop.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    ActionChains(desktop).move_to_element(canvas).perform()
    outline, view = page.one("#outline"), page.one("#seen").rect
    page.wait(lambda: outline.is_displayed())
    box = outline.rect
    top, left = (round(28 * (box[k] - view[k]) / view["width"]) for k in "yx")
    size = round(28 * box["width"] / view["width"])
    words = re.match(r"Row (\d+), column (\d+) after step \d sees", page.one("#field").text)
    row, column = (int(word) - 1 for word in words.groups())
    assert abs(row - side / 2) <= 1  # the middle lies between two pixels
    seen, stride = {1: (3, 1), 3: (6, 2), 7: (18, 2)}[step]
    assert (top, left, size) == (row * stride, column * stride, seen)
    ActionChains(desktop).move_to_element(page.paper).perform()
    page.wait(lambda: not outline.is_displayed())
    page.check_quiet()


# ---- Windows, and elsewhere


@pytest.fixture
def resize(desktop):
    """Gives the window any size, smaller ones than Chromium allows as well."""

    def resize(width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        desktop.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield resize
    desktop.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [320, 390, 600, 768, 1024, 1280, 1920, 2560])
def test_the_page_fits_its_window(desktop, address, resize, width):
    resize(width, 900)
    page = Page(desktop, address)
    page.draw(THREE)
    page.wait_for(3)
    root = "document.documentElement"
    content, window = desktop.execute_script(f"return [{root}.scrollWidth, {root}.clientWidth]")
    assert content == window
    outside = desktop.execute_script("""
        return [...document.querySelectorAll("body *")].filter((each) => {
          const {left, right} = each.getBoundingClientRect();
          return left < 0 || right > innerWidth + 0.5;
        }).length;""")
    assert outside == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(desktop, address, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page = Page(desktop, address)
    colour = page.one("body").value_of_css_property("background-color")
    brightness = np.mean([int(each) for each in re.findall(r"\d+", colour)[:3]])
    assert (brightness > 128) == (scheme == "light")
    desktop.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_works_inside_a_frame(desktop, runs, write_page):
    """As in the output cell of a notebook."""
    inner = html.escape(make_page(runs[-1:]))
    frame = f'<meta charset="utf-8"><iframe width="900" height="700" srcdoc="{inner}"></iframe>'
    outer = write_page(f"<!doctype html>{frame}", "frame")
    desktop.get(outer)
    desktop.switch_to.frame(0)
    wait = WebDriverWait(desktop, PATIENCE)
    wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "body[data-ready]"))
    assert desktop.execute_script("return jaxmnist.networks.length") == 1
    assert not desktop.find_element(By.CSS_SELECTOR, ".examples").is_displayed()
    assert desktop.get_log("browser") == []


def test_an_installed_copy_makes_the_same_page(runs, tmp_path):
    """With the page's files, which are no modules of Python."""
    target = tmp_path / "installed"
    source = shutil.copytree(
        SCRIPTS.parent, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "runs", "build")
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    subprocess.run([*pip, source], check=True, timeout=120)
    code = (
        "import sys, jaxmnist; from jaxmnist.page import make_page;"
        f"assert jaxmnist.__file__.startswith({str(target)!r}), jaxmnist.__file__;"
        "sys.stdout.write(make_page([jaxmnist.load_run(sys.argv[1])]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, runs[0].path],
        cwd=tmp_path,
        env={"PYTHONPATH": str(target), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == make_page(runs[:1])
