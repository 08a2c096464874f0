"""Times the frames of pages of scripts/demo.py: `python scripts/benchmark/page_frames.py FILE...`.

A spiral is drawn with the mouse in headless Chromium. For each frame of it, prints the milliseconds
of the page's own work, and those until the browser's main thread has finished the frame.
"""

import argparse
import math
import shutil
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

POINTS = 150
# A message that is posted in a frame arrives when the frame is done.
TIMER = """
const request = window.requestAnimationFrame.bind(window);
window.frames_ = [];
window.requestAnimationFrame = (call) => request((now) => {
  const start = performance.now();
  call(now);
  const work = performance.now() - start;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => window.frames_.push([work, performance.now() - start]);
  port2.postMessage(null);
});
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    for file in parser.parse_args().files:
        work, frame = time_frames(file.resolve().as_uri())
        print(f"{file}: {len(work)} frames; work {describe(work)}; frame {describe(frame)}")


def time_frames(address: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the milliseconds of each frame: of the page's work, and of all."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{word}")
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": TIMER})
        driver.get(address)
        draw_spiral(driver)
        work, frame = np.array(driver.execute_script("return window.frames_")).T
    finally:
        driver.quit()
    return work, frame


def draw_spiral(driver: webdriver.Chrome) -> None:
    """Draw a spiral that becomes a 6, point by point."""
    paper = driver.find_element(By.ID, "paper")
    side = paper.size["width"]
    actions = ActionChains(driver, duration=20)
    for k in range(POINTS):
        angle, radius = 4 * math.pi * k / POINTS, 0.4 * side * (1 - k / POINTS)
        place = round(radius * math.sin(angle)), round(-radius * math.cos(angle))
        actions.move_to_element_with_offset(paper, *place)
        if k == 0:
            actions.click_and_hold()
    actions.release().perform()


def describe(milliseconds: np.ndarray) -> str:
    """Return the median and the range of most values in words."""
    low, median, high = np.percentile(milliseconds, (10, 50, 95))
    return f"{median:.1f} ms (a tenth within {low:.1f}, 95 % within {high:.1f})"


if __name__ == "__main__":
    main()
