"""What the benchmarks start: programs of a release build, and one server at a time for the length of a `with`."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# A model may have to be read from a slow disk.
START_LIMIT_S = 600
STOP_LIMIT_S = 20
SHOWN_LOG = 3000


def build(*benches):
    """Builds garrick, and these bench targets with it; the path of each program by its name."""
    command = ["cargo", "build", "--release", "--bin", "garrick", "--message-format=json"]
    for bench in benches:
        command += ["--bench", bench]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def garrick(program, model, *flags):
    """The command of a Garrick that leaves nothing behind. `model` is a path, or a fake one."""
    model = str(Path(model).resolve()) if Path(model).exists() else model
    return [program, "serve", "--model", model, "--listen", "127.0.0.1:{port}", "--set", "store.path=bench.db", *flags]


def pin(cores):
    """For `preexec_fn`: the process may use these cores only."""
    return (lambda: os.sched_setaffinity(0, cores)) if cores else None


class Server:
    """A server that answers. `{port}` in its command stands for the port that it gets; `ready` is a path that is 200 as
    soon as requests would be answered, or None where an open port says so."""

    def __init__(self, command, ready="/v1/models", environment=None, cores=None):
        self.folder = tempfile.TemporaryDirectory()
        self.port, self.ready = free_port(), ready
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = open(Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen(
            [str(part).replace("{port}", str(self.port)) for part in command],
            cwd=self.folder.name,
            env={**os.environ, **(environment or {})},
            stdout=self.log,
            stderr=self.log,
            preexec_fn=pin(cores),
            start_new_session=True,
        )

    @property
    def pid(self):
        return self.process.pid

    def __enter__(self):
        deadline = time.monotonic() + START_LIMIT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                output = self.log.read()[-SHOWN_LOG:]
                self.__exit__()
                sys.exit(f"a server did not start:\n{output}")
            time.sleep(0.1)
        return self

    def answers(self):
        try:
            if self.ready is None:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            with urllib.request.urlopen(self.url + self.ready, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def model(self):
        """The name of what it serves."""
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
            return json.load(answer)["data"][0]["id"]

    def peak_mib(self):
        """Of all processes of its group, at most since each began."""
        total = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(process.name)) == self.pid:
                    total += memory_kib(process.name, "VmHWM")
            except (OSError, StopIteration):
                continue
        return total / 1024

    def __exit__(self, *_):
        # Its whole group: workers are processes of their own.
        try:
            os.killpg(self.pid, signal.SIGTERM)
            self.process.wait(STOP_LIMIT_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()
        self.folder.cleanup()


def memory_kib(pid, name):
    """A line of a process's status, such as VmRSS or VmHWM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])
