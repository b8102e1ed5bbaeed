"""Reports in headless Chromium: messages, requests, pictures, width, and findings of axe-core.

``python -m tests.report.browser FOLDER PATH...`` makes the report of the paths (caches, runs or
pipelines) there, opens it wide, narrow and with a dark color scheme, writes a screenshot of each,
and prints what is wrong. ``.ci/matrix report`` runs it on the demo. It needs Chromium, and npm for
axe-core, which is installed into the folder.

The page forbids scripts. axe-core is run in a copy without that rule; everything else is found out
about the page itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from logitcache.cli import app

__all__ = ["LOOKS", "Look", "faults_of"]

NOT_RUN = 77
"""Exit code where a program is missing."""
AXE = "axe-core@4"
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_RESULT = re.compile(r'<script id="result" type="application/json">(.*?)</script>', re.DOTALL)
_MESSAGE = re.compile(r'CONSOLE[:(]\d+\)?\]? "(.*)"')
_AFTER = """<script id="result" type="application/json"></script><script>{axe}</script><script>
axe.run().then(found => {{
  const serious = found.violations.filter(v => ["serious", "critical"].includes(v.impact));
  document.getElementById("result").textContent = JSON.stringify({{
    findings: serious.map(v => v.id + ": " + v.nodes.map(n => n.target).join(" ")),
    lighter: found.violations.length - serious.length,
    passes: found.passes.length,
    pictures: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    wider: document.documentElement.scrollWidth > window.innerWidth,
  }});
}});
</script>"""


class Look(NamedTuple):
    """A way to look at a page.

    Attributes:
        width: Width of the window in pixels.
        dark: Whether the reader has chosen a dark color scheme.
    """

    width: int
    dark: bool


LOOKS = {"wide": Look(1200, False), "phone": Look(500, False), "dark": Look(1200, True)}
"""Ways to look at a page by name; Chromium has no window narrower than 500 pixels."""


def chromium(look: Look, *options: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium without a window and return its output."""
    scheme = 0 if look.dark else 1
    return subprocess.run(
        [
            _program("chromium"),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--window-size={look.width},2400",
            *options,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def faults_of(page: Path, axe: str, look: str, folder: Path) -> list[str]:
    """Look at a page, write its screenshot, and return what is wrong.

    Args:
        page: Report.
        axe: Code of axe-core.
        look: Name of the way to look, a key of :data:`LOOKS`.
        folder: For the screenshot and files of the check.
    """
    how, log = LOOKS[look], folder / f"{look}.netlog.json"
    shot = f"--screenshot={folder / f'{look}.png'}"
    shown = chromium(how, shot, f"--log-net-log={log}", page.as_uri())
    faults = [f"message on the console: {text}" for text in _MESSAGE.findall(shown.stderr)]
    faults += [f"request: {url}" for url in _requests(log.read_text(), page)]
    copy = folder / f"{look}.axe.html"
    text = page.read_text()
    assert _POLICY.search(text), "the page has no policy against scripts"
    after = _AFTER.format(axe=axe.replace("</script", "<\\/script"))
    copy.write_text(_POLICY.sub("", text).replace("</body>", f"{after}</body>"))
    dumped = chromium(how, "--dump-dom", "--virtual-time-budget=60000", copy.as_uri()).stdout
    result = _RESULT.search(dumped)
    assert result, "axe-core has not ended"
    assert result[1], "axe-core has not ended"
    return faults + _findings(json.loads(result[1]), look)


def _findings(found: dict[str, Any], look: str) -> list[str]:
    print(f"{look}: {found['passes']} rules of axe-core hold, {found['lighter']} lighter findings")
    faults = [f"axe-core: {finding}" for finding in found["findings"]]
    if found["pictures"]:
        faults.append(f"{found['pictures']} pictures are not loaded")
    if found["wider"]:
        faults.append("the page is wider than the window")
    return faults


def _requests(log: str, page: Path) -> list[str]:
    """Return the URLs that the page requested; Chromium's own services are not the page's."""
    found = set(re.findall(r'"url":"((?:https?|file|wss?):[^"]+)"', log))
    own = re.compile(r"https?://([\w.-]+\.)?(google|googleapis|gstatic|gvt1)\.com\b")
    return sorted(url for url in found if url != page.as_uri() and not own.match(url))


def _check_itself(axe: str, folder: Path) -> None:
    """Look at a page that has a fault of each kind."""
    (folder / "wrong.html").write_text(
        '<html><meta http-equiv="Content-Security-Policy" content="object-src \'none\'"><body>'
        '<script>console.log("text")</script><img src="http://127.0.0.1:9/a.png">'
        '<div style="width: 3000px">wide</div></body></html>'
    )
    found = " ".join(faults_of(folder / "wrong.html", axe, "wide", folder))
    for fault in ("console: text", "127.0.0.1:9", "image-alt", "pictures are not", "is wider"):
        assert fault in found, f"the check does not find '{fault}', but {found}"


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        print(f"no {name} here: apt-get install {name}", file=sys.stderr)
        sys.exit(NOT_RUN)
    return path


def axe_core(folder: Path) -> str:
    """Install axe-core into a folder, and return its code."""
    path = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        command = [_program("npm"), "install", "--silent", "--no-audit", "--prefix", str(folder)]
        subprocess.run([*command, AXE], check=True)
    return path.read_text()


def main(folder: Path, paths: list[str]) -> None:
    """Make a report and print what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    _program("chromium")
    axe, page = axe_core(folder), folder / "report.html"
    sys.argv = ["logitcache", "report", *paths, "--out", str(page)]
    try:
        app.main()
    except SystemExit as left:
        if left.code:
            raise
    _check_itself(axe, folder)
    faults = [f"{look}: {fault}" for look in LOOKS for fault in faults_of(page, axe, look, folder)]
    print(*faults, sep="\n")
    sys.exit(f"{len(faults)} faults" if faults else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
