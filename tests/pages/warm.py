"""Processes that start with torch and logitcache imported: forks of one that has imported them.

``WarmPython(folder)`` starts a server and writes the programs ``python`` and ``logitcache`` into
the folder; with it in front of ``PATH``, scripts of bash start both in a few hundredths of a second
instead of seconds. A fork has the arguments, environment, working folder and open files of the
program that it stands for, and its exit code.

``python -m tests.pages.warm SOCKET MODULE...`` is the server, which imports the modules first.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Self

__all__ = ["WarmPython"]

MODULES = (
    *("torch", "timm", "logitcache.cli.app", "logitcache.cli.run", "logitcache.training.loop"),
    # what most commands of the pages import after that, for half a second each
    *("logitcache.check.verify", "logitcache.cli.plan", "logitcache.cli.tables"),
    *("logitcache.precompute.build", "logitcache.report.page.report", "logitcache.share.transfer"),
    *("cryptography.hazmat.primitives.asymmetric.ed25519", "s3fs"),
)

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([{program!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
answers = server.makefile("r")
process = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(answers.readline()))
"""


class WarmPython:
    """A server of forks, as a context.

    Args:
        folder: For its socket and programs; a short path.
        modules: What is imported before the first fork; those of stand-ins for large networks.
    """

    def __init__(self, folder: Path, modules: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.modules = (*MODULES, *modules)

    def __enter__(self) -> Self:
        address = str(self.folder / "socket")
        self.folder.mkdir(parents=True, exist_ok=True)
        for program in ("python", "logitcache"):
            path = self.folder / program
            path.write_text(_CLIENT.format(python=sys.executable, address=address, program=program))
            path.chmod(0o755)
        command = [sys.executable, "-m", "tests.pages.warm", address, *self.modules]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while not Path(address).exists():
            assert self.process.poll() is None, "the server of warm processes has not started"
            time.sleep(0.02)
        return self

    def seconds(self) -> float:
        """Return the processor time of all programs that have ended, without their workers."""
        path = self.folder / "seconds"
        lines = path.read_text().splitlines() if path.exists() else []
        return sum(map(float, lines))

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


def serve(address: str, modules: list[str]) -> None:
    """Fork for each request."""
    for module in modules:
        __import__(module)
    gc.freeze()  # no fork looks at what all of them share
    server = socket.socket(socket.AF_UNIX)
    server.bind(address + ".new")
    server.listen()
    Path(address + ".new").rename(address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the forks that wait are not waited for
    while True:
        client, _ = server.accept()
        if not os.fork():
            break
        client.close()
    server.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _wait_for_program(client)


def _wait_for_program(client: socket.socket) -> None:
    """Run the program in another fork, and send its process number and exit code."""
    size, descriptors, _, _ = socket.recv_fds(client, 4, 3)
    content = client.makefile("rb").read(int.from_bytes(size, "big"))
    process = os.fork()
    if not process:
        client.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        # those of the server remember whether its own files can be sought
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        _run_and_exit(*json.loads(content))
    client.sendall(f"{process}\n".encode())
    _, status, used = os.wait4(process, 0)
    code = os.waitstatus_to_exitcode(status)
    with Path(client.getsockname()).with_name("seconds").open("a") as file:
        file.write(f"{used.ru_utime + used.ru_stime:.3f}\n")
    with contextlib.suppress(BrokenPipeError):
        client.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    os._exit(0)


def _run_and_exit(*request: Any) -> None:
    """Run a program, and leave without the end of the interpreter, which takes longer than most."""
    code: Any = 0
    try:
        _run(*request)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(code or 0)


def _run(program: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if program == "logitcache":
        sys.argv = ["logitcache", *arguments]
        from logitcache.cli.app import main

        main()
        return
    first, *rest = arguments
    if first == "-c":
        _set_up(["-c", *rest[1:]], folder)
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        _set_up(rest, folder)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        _set_up(arguments, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


def _set_up(arguments: list[str], folder: str) -> None:
    sys.argv = arguments
    sys.path[0] = folder


def main(address: str, *modules: str) -> Any:
    """Start the server."""
    serve(address, list(modules))


if __name__ == "__main__":
    main(*sys.argv[1:])
