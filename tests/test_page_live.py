"""The page of `scripts/demo.py` for real: its server, and drawing in headless Chromium."""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

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
from jaxmnist.runs.setup import make_setup
from tests.conftest import SCRIPTS, golden_variables, trained_variables

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
def two_runs(small_idx_dir, tmp_path_factory):
    """A network that reads digits, and one that has learnt nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.idx, "SHA256", {})
        job = make_setup(TrainConfig("gap"), jaxmnist.RunOptions(idx_dir=small_idx_dir))
    # Of the images that it was trained on.
    job = job._replace(facts={**job.facts, "normalisation": (0.1307, 0.3081)})
    folder = tmp_path_factory.mktemp("runs")
    for name, variables in (("good", trained_variables()), ("bad", golden_variables("gap"))):
        imported.write_run(job, variables, folder / name, Path("weights"))
    return folder / "good", folder / "bad"


# Any images count as MNIST.
START = (
    "import runpy, sys; from jaxmnist.data import idx; idx.SHA256.clear(); del sys.argv[0]; "
    f"sys.path[0] = {str(SCRIPTS)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def start_page(two_runs, small_idx_dir, cache):
    """Starts the command; returns the process and the address of the page."""
    processes = []

    def start_page(*words):
        command = [sys.executable, "-c", START, SCRIPTS / "demo.py", "--port", "0", "--no-browser"]
        process = subprocess.Popen(
            [*command, "--idx-dir", small_idx_dir, *words],
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in words]
        assert [line.split(": ")[1].strip() for line in lines] == list(map(str, words))
        return process, process.stdout.readline().split()[4]

    yield start_page
    for process in processes:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def address(start_page, two_runs):
    """Of a page that is there for all tests."""
    return start_page(*two_runs)[1]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: " + b"b" * 300_000 + b"\r\n\r\n", 431),
        (b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n", 413),
        (
            b"POST /read HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"ffff\r\n" + b"\0" * 0xFFFF + b"\r\n0\r\n\r\n",
            413,
        ),
        (b"GET /%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_malformed_requests_are_refused_and_the_next_is_served(address, request_, status):
    place = re.findall(r"([\d.]+):(\d+)", address)[0]
    with socket.create_connection(place, timeout=PATIENCE) as connection:
        connection.sendall(request_)
        assert connection.recv(1 << 16).split()[1] == str(status).encode()
    client = http.client.HTTPConnection(*place, timeout=PATIENCE)
    client.request("GET", "/shown")
    assert client.getresponse().status == 200
    client.close()


# ---- In a browser


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
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
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


def length_of_bar(meter):
    return meter.find_element(By.CSS_SELECTOR, ".bar").rect["width"]


class Page:
    """What one sees and does."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        driver.get(address)
        self.wait(lambda: self.all("body[data-ready]"))

    def wait(self, condition):
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def answers(self):
        """What each network reads: the big figure."""
        return [output.text.split()[0] for output in self.all(".answer")]

    def highest_bars(self):
        """The digit of each network's longest bar, by its length on the screen."""
        return [
            max(
                card.find_elements(By.CSS_SELECTOR, "[role=meter]"), key=length_of_bar
            ).get_attribute("aria-label")
            for card in self.all("article")
        ]

    def wait_for(self, digit):
        """Until the network that can read reads this."""
        self.wait(lambda: self.answers()[0] == str(digit))
        bars = self.all("article:first-child [role=meter]")
        assert length_of_bar(bars[digit]) > 20
        assert self.highest_bars()[0] == str(digit)

    def wait_for_nothing(self):
        """Until nothing is read, and nothing is shown of what was."""
        self.wait(lambda: set(self.answers()) == {"?"})
        assert not any(length_of_bar(meter) for meter in self.all("[role=meter]"))
        assert self.ink() == 0

    def ink(self):
        """How much of the 28 x 28 picture is white."""
        return self.driver.execute_script("""
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(document.getElementById("seen"), 0, 0);
            const {data} = context.getImageData(0, 0, 28, 28);
            return data.reduce((sum, value) => sum + value, 0) / 255 / 4;""")

    def settled_ink(self):
        """The same, once all questions are answered."""
        pause = ActionChains(self.driver).pause(0.2)
        self.wait(lambda: self.ink() == (pause.perform() or self.ink()))
        return self.ink()

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

    def errors(self):
        # The server refuses a drawing that is no digit yet; the page waits for more of it.
        lines = self.driver.get_log("browser")
        return [line for line in lines if "422 (UNPROCESSABLE" not in line["message"]]


def test_a_digit_is_read_while_it_is_drawn(desktop, address):
    page = Page(desktop, address)
    assert page.answers() == ["?", "?"]
    page.draw(SEVEN, lift=False)
    page.wait_for(7)
    assert page.ink() > 20
    ActionChains(desktop).release().perform()
    page.wait_for(7)
    assert page.one("#status").text.startswith(("gap good reads 7", "All read 7"))
    assert page.errors() == []


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
    assert page.errors() == []


def test_what_is_cleared_is_not_answered_any_more(desktop, address):
    """Even if the question is under way."""
    page = Page(desktop, address)
    desktop.execute_script("""
        const slow = window.fetch;
        window.answers = 0;
        window.fetch = async (...words) => {
          const reply = await slow(...words);
          await new Promise((resolve) => setTimeout(resolve, 500));
          window.answers += 1;
          return reply;
        };""")
    page.draw(ONE)
    page.one("#clear").click()
    page.wait_for_nothing()
    page.wait(lambda: desktop.execute_script("return window.answers") == 1)
    ActionChains(desktop).pause(0.2).perform()
    page.wait_for_nothing()


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
    # The finger has drawn, not scrolled; and what comes of it is in sight.
    seen = "return [scrollY, document.querySelector('.bars').getBoundingClientRect().bottom]"
    scrolled, bottom = phone.execute_script(seen)
    assert scrolled == 0
    assert bottom < 660
    page.one("#clear").click()
    page.wait_for_nothing()
    assert page.errors() == []


def test_the_keyboard_alone_suffices(desktop, address):
    page = Page(desktop, address)
    page.press(Keys.TAB)
    assert page.focused() == page.paper
    up, down, left, right = Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_RIGHT
    page.press(*[left] * 5, Keys.SPACE, *[down] * 8, *[right] * 9, Keys.SPACE)
    ink = page.settled_ink()
    assert ink > 20
    page.press(*[up] * 7, left)  # lifted: nothing is drawn
    assert page.settled_ink() == ink
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
    page.wait(lambda: page.one("#status").text.startswith("Test image"))
    page.press(Keys.DELETE)
    page.wait_for_nothing()
    page.press_with_control("z")
    page.wait(lambda: page.one("#status").text.startswith("Test image"))
    assert page.errors() == []


def test_an_example_is_shown_as_the_networks_have_read_it(desktop, address):
    page = Page(desktop, address)
    example = page.all("#hard button")[0]
    name = example.get_attribute("title")
    assert re.fullmatch(r"Test image \d+, (a [0-79]|an 8)", name)
    example.click()
    page.wait(lambda: page.one("#status").text.startswith(f"{name}. "))
    for card, digit in zip(page.all("article"), page.highest_bars(), strict=True):
        assert card.get_attribute("class") == ("right" if digit == name[-1] else "wrong")
    assert "wrong" in [card.get_attribute("class") for card in page.all("article")]
    # With a stroke over it, it is nobody's example any more.
    page.draw(ONE)
    page.wait(lambda: not page.all("article.wrong, article.right"))
    assert page.errors() == []


@pytest.fixture
def resize(desktop):
    """Gives the window any size, smaller ones than Chromium allows as well."""

    def resize(width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        desktop.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield resize
    desktop.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1280, 1920])
def test_the_page_fits_its_window(desktop, address, resize, width):
    resize(width, 900)
    page = Page(desktop, address)
    root = "document.documentElement"
    content, window = desktop.execute_script(f"return [{root}.scrollWidth, {root}.clientWidth]")
    assert content == window
    for card in page.all("article, #paper, .examples button"):
        assert card.rect["x"] >= 0
        assert card.rect["x"] + card.rect["width"] <= window


def test_seven_networks_stand_side_by_side(desktop, start_page, two_runs, resize):
    _, address = start_page(*[two_runs[0]] * 7)
    resize(1280, 900)
    page = Page(desktop, address)
    assert len({card.rect["y"] for card in page.all("article")}) == 1
    page.draw(THREE)
    page.wait_for(3)
    assert page.answers() == ["3"] * 7
    assert page.one("#status").text == "All read 3."
    for meter in page.all("[role=meter]"):
        assert meter.find_element(By.CSS_SELECTOR, ".track").rect["width"] > 20


def test_the_page_says_that_its_server_is_gone(start_browser, start_page, two_runs):
    process, address = start_page(*two_runs)
    page = Page(start_browser(1280, 900), address)
    process.kill()
    process.wait()
    page.draw(ONE)
    page.wait(lambda: "The server does not answer" in page.one("#status").text)
