"""Caches on servers that are no mocks: killed and started again, compressing, without Range, busy.

Started as a script, ``python -m tests.matrix.servers --rclone PATH --nginx PATH`` prints a line for
each check and fails where one does. Servers whose program is not given are not run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.matrix.names import write_inputs
from tests.remote.servers import Behavior, FaultyServer, from_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Check", "check_web", "http_server", "made_cache", "nginx_servers"]

OUTAGES = (1, 10, 60)
NOT_RUN = 77
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "x"}
STUDENT = ["--student", "resnet10t", "--batch-size", "8", "--device", "cpu", "--threads", "1"]
NGINX = """
daemon off;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{}}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    server {{ listen 127.0.0.1:{plain}; root {folder}; }}
    server {{ listen 127.0.0.1:{unranged}; root {folder}; max_ranges 0; }}
    server {{
        listen 127.0.0.1:{gzip}; root {folder};
        gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;
    }}
    server {{ listen 127.0.0.1:{static}; root {folder}; gzip_static always; gunzip off; }}
}}
"""


class Check(NamedTuple):
    """What a command did, and what it had to do.

    Attributes:
        name: Server and command.
        expected: What it had to leave with.
        got: What it left with.
        detail: A line of what it printed, or what differs.
    """

    name: str
    expected: int
    got: int
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what it had to."""
        return self.expected == self.got

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"FAILED, not {self.expected}"
        return f"{self.name:<50} exit {self.got}  {verdict}  {self.detail}".rstrip()


def logitcache(
    *arguments: object, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command of the program."""
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(log.open("wb")) if log else subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-m", "logitcache", *map(str, arguments)],
            # sums of several threads have other last bits
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            cwd=Path(__file__).parents[2],
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def run(name: str, expected: int, *arguments: object, message: str = "") -> Check:
    """Run a command to its end; what it has to say is looked for in what it prints."""
    process = logitcache(*arguments)
    printed = process.communicate()[0].decode(errors="replace")
    lines = [line.strip() for line in printed.splitlines() if message and message in line]
    got = process.returncode
    if (message and not lines) or "Traceback" in printed:
        return Check(name, expected, -1, f"exit {got}: {printed[-2000:]}")
    if got != expected:
        return Check(name, expected, got, printed[-2000:])
    return Check(name, expected, got, lines[0] if lines else "")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Server:
    """A process that listens on a port of this machine; it can be killed and started again.

    Args:
        command: What is started.
        ports: What it listens on.
    """

    def __init__(self, command: Sequence[object], *ports: int) -> None:
        self.command = [str(part) for part in command]
        self.ports = ports

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        for port in self.ports:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline, self.command
                assert self.process.poll() is None, self.command
                time.sleep(0.05)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def precompute(cache: object, root: Path) -> list[object]:
    """Return the arguments that make the cache of a few images, in many small units."""
    options = ["--device", "cpu", "--threads", "1", "--unit-rows", "16", "--batch-size", "8"]
    options += ["--views", "6", "--set", "min_accuracy=0"]
    teacher = f"cnn=local-dir:{root / 'teacher'}"
    return [
        "precompute",
        "--cache",
        cache,
        "--data",
        root / "images",
        "--teacher",
        teacher,
        *options,
    ]


def train(cache: object, root: Path, out: Path) -> list[object]:
    """Return the arguments that train on it for an epoch a view, with no shard kept here."""
    options = ["--epochs", "6", "--local-copy-bytes", "0", "--set", "student.size=32"]
    options += ["--set", "student.kwargs={channels: [16, 16, 16, 16], stem_width: 16}"]
    return ["train", "--cache", cache, "--data", root / "images", "--out", out, *STUDENT, *options]


def made_cache(root: Path) -> Path:
    """Write images and a teacher, and make a cache without any server."""
    write_inputs(root)
    check = run("precompute to a folder", 0, *precompute(root / "served" / "c", root))
    assert check.ok, check
    damaged = root / "served" / "damaged"
    shutil.copytree(root / "served" / "c", damaged)
    shard = next(damaged.glob("teachers/cnn/*/c/0/1/0"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for path in (root / "served").rglob("*"):  # for a server that sends these alone
        if path.is_file():
            path.with_name(f"{path.name}.gz").write_bytes(b"\x1f\x8b")
    return root / "served" / "c"


def weights(out: Path) -> bytes:
    """Return the weights that a training has exported."""
    return (out / "export" / "model.safetensors").read_bytes()


# -- web servers ---------------------------------------------------------------------------------


def check_web(name: str, url: str, *, ranges: bool = True) -> Iterator[Check]:
    """Check the verdicts on a cache and on a damaged one."""
    yield run(f"{name}: verify", 0, "verify", f"{url}/c")
    quick, message = (0, "") if ranges else (3, "does not support Range requests")
    yield run(f"{name}: verify --quick", quick, "verify", "--quick", f"{url}/c", message=message)
    yield run(f"{name}: verify, one damaged shard", 4, "verify", f"{url}/damaged")
    yield run(f"{name}: verify, no cache", 1, "verify", f"{url}/absent", message="no cache here")


def check_training(name: str, url: str, root: Path, expected: bytes) -> Check:
    """Check that a training has the weights of one from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        check = run(f"{name}: train", 0, *train(f"{url}/c", root, Path(folder) / "out"))
        if check.ok and weights(Path(folder) / "out") != expected:
            return check._replace(got=-1, detail="other weights than from a folder")
        return check._replace(detail="the weights of the folder" if check.ok else check.detail)


@contextlib.contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Serve a folder by ``python -m http.server``, which knows no Range."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"]
    with Server([*command, "--directory", folder], port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def nginx_servers(nginx: str, folder: Path) -> Iterator[dict[str, str]]:
    """Serve a folder by nginx in four ways; return their addresses."""
    with tempfile.TemporaryDirectory() as root:
        ports = {name: free_port() for name in ("plain", "unranged", "gzip", "static")}
        Path(root).chmod(0o755)
        configuration = Path(root) / "nginx.conf"
        configuration.write_text(NGINX.format(root=root, folder=folder, **ports))
        user = ["-g", "user root;"] if os.geteuid() == 0 else []
        with Server([nginx, "-p", root, "-c", configuration, *user], *ports.values()):
            yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}


def check_busy(folder: Path) -> Iterator[Check]:
    """Check a server that answers a tenth of the requests by 429 and when to come back."""
    busy = Behavior(failing=0.1, status=429, headers={"Retry-After": "1"})
    with FaultyServer(from_folder(folder), busy) as server:
        yield run("429 with Retry-After: verify", 0, "verify", f"{server.url}/c")
        refused = server.injected
        server.behavior.failing = 1.0
        yield run(
            f"429 for ever, after {refused} that were waited for",
            3,
            *("--retry-seconds", 3, "verify", f"{server.url}/c"),
            message="HTTP status 429, Retry-After: 1 s",
        )


# -- a store that is killed ----------------------------------------------------------------------


def check_outages(rclone: str, root: Path, expected: bytes) -> Iterator[Check]:
    """Kill the store in the middle of precompute and of training, and start it again later."""
    port = free_port()
    environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    store, url = root / "store", "s3://bucket/c"
    cache = store / "bucket" / "c"
    command = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]

    def half_computed() -> bool:
        return len(list(cache.glob("commits/teachers/**/*.json"))) >= 5

    for seconds in OUTAGES:
        shutil.rmtree(store, ignore_errors=True)
        cache.parent.mkdir(parents=True)
        out = root / f"out-{seconds}"
        with Server([*command, store], port) as server:
            away = Outage(server, seconds, environment)
            name = f"rclone away for {seconds} s"
            check = away.during(f"{name}: precompute", precompute(url, root), half_computed)
            if check.ok and (key := first_difference(cache, root / "served" / "c")):
                check = check._replace(got=-1, detail=f"{key} differs")
            yield check
            journal = out / "journal.jsonl"
            check = away.during(f"{name}: train", train(url, root, out), journal.exists)
            if check.ok and weights(out) != expected:
                check = check._replace(got=-1, detail="other weights than from a folder")
            yield check


class Outage(NamedTuple):
    """A server that is away for a while.

    Attributes:
        server: The server.
        seconds: How long it is away.
        environment: How commands reach it.
    """

    server: Server
    seconds: float
    environment: Mapping[str, str]

    def during(
        self, name: str, arguments: Sequence[object], is_midway: Callable[[], bool]
    ) -> Check:
        """Run a command whose server goes away as soon as the command is midway."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            process = logitcache(*arguments, environment=self.environment, log=log)
            while process.poll() is None and not is_midway():
                time.sleep(0.02)
            self.server.kill()
            time.sleep(self.seconds)
            early = process.poll() is not None
            self.server.start()
            code = process.wait()
            if early or code != 0:
                detail = "it did not wait for the server: " if early else ""
                return Check(name, 0, code or -1, detail + log.read_text()[-2000:])
        return Check(name, 0, code, "the bytes of an undisturbed run")


def first_difference(cache: Path, expected: Path) -> str | None:
    """Return the first key whose bytes differ; None where all are equal."""
    keys = {
        path.relative_to(root).as_posix()
        for root in (cache, expected)
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".gz"
    }
    for key in sorted(keys):
        one, other = cache / key, expected / key
        both = one.is_file() and other.is_file()
        if not both or one.read_bytes() != other.read_bytes():
            return key
    return None


# -- all -----------------------------------------------------------------------------------------


def checks(root: Path, rclone: str | None, nginx: str | None) -> Iterator[Check]:
    """Run all checks of the servers that are here."""
    served = made_cache(root).parent
    trained = run("train from a folder", 0, *train(served / "c", root, root / "out"))
    assert trained.ok, trained
    expected = weights(root / "out")
    with http_server(served) as url:
        yield from check_web("http.server", url, ranges=False)
        yield check_training("http.server", url, root, expected)
    yield from check_busy(served)
    if nginx is not None:
        with nginx_servers(nginx, served) as urls:
            for name in ("plain", "gzip"):
                yield from check_web(f"nginx, {name}", urls[name])
                yield check_training(f"nginx, {name}", urls[name], root, expected)
            yield from check_web("nginx, max_ranges 0", urls["unranged"], ranges=False)
            yield check_training("nginx, max_ranges 0", urls["unranged"], root, expected)
            static = f"{urls['static']}/c"
            for command in (["verify"], ["verify", "--quick"], ["inspect"]):
                name = f"nginx, gzip_static always: {' '.join(command)}"
                yield run(name, 3, *command, static, message="compresses its responses")
    if rclone is not None:
        yield from check_outages(rclone, root, expected)


def main(arguments: Sequence[str]) -> int:
    """Print a line for each check; return 1 where one failed, 77 where a program is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rclone", help="Its program; https://rclone.org")
    parser.add_argument("--nginx", help="Its program.")
    given = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as root:
        for check in checks(Path(root), given.rclone or None, given.nginx or None):
            print(check, flush=True)
            failed += not check.ok
    missing = [name for name in ("rclone", "nginx") if not getattr(given, name)]
    if missing:
        print(f"no {' and no '.join(missing)} here: those checks were not run")
    return 1 if failed else NOT_RUN if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
