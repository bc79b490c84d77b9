"""`garrick serve` on the random checkpoint under `garrick load`: tokens a second by streams, and the idle server's CPU."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import checkpoint
import model
import results
from model import GARRICK

PORT = 18080
URL = f"http://127.0.0.1:{PORT}"
IDLE_S = 5.0


@contextlib.contextmanager
def server(folder, args, *options):
    """The server's process, once it is ready; None where it does not become so."""
    command = [GARRICK, "serve", "--model", str(folder), "--listen", f"127.0.0.1:{PORT}", "--max-model-len", "8192"]
    command += ["--set", f"engine.device={args.device}", "--set", f"store.path={args.scratch}/gpu-check.db"]
    command += ["--set", f"scheduler.max_running={max(args.streams)}", "--set", "scheduler.speculative=off"]
    command += ["--set", "telemetry.log_level=warn", *options]
    print(" ".join(command), flush=True)
    process = subprocess.Popen(command)
    try:
        yield process if is_ready(process) else None
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(process):
    while process.poll() is None and not results.is_over():
        with contextlib.suppress(OSError, urllib.error.URLError):
            if urllib.request.urlopen(f"{URL}/health/ready", timeout=2).status == 200:
                return True
        time.sleep(0.2)
    return False


def cpu_s(pid):
    """Processor time of a process, from the 14th and 15th field of its stat (proc(5))."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(process, streams, args):
    """The report of `garrick load`; None where it fails."""
    command = [GARRICK, "load", "--url", URL, "--streams", str(streams), "--tokens", str(args.tokens), "--ignore-eos"]
    command += ["--warm-up", str(args.warm_up), "--duration", str(args.duration), "--pid", str(process.pid), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=args.warm_up + args.duration + 60)
    return json.loads(done.stdout) if done.returncode == 0 else None


def measure(found, process, streams, args, sampling):
    report = load(process, streams, args)
    if report is None:
        return found.note(f"garrick load with {streams} streams failed")
    found.add("serve", streams=streams, sampling=sampling, **{
        "tokens/s": report["events_per_s"], "first token p50 ms": report["ttft_ms"]["p50"],
        "first token p99 ms": report["ttft_ms"]["p99"], "gap p50 ms": report["gap_ms"]["p50"],
        "gap p99 ms": report["gap_ms"]["p99"],
        "failures": report["failures"], "server cores": report["server_cores"], "client cores": report["client_cores"]})


def main():
    parser = model.options(__doc__)
    parser.add_argument("--streams", type=model.numbers, default=[1, 8, 64, 256])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--warm-up", type=float, default=5)
    parser.add_argument("--duration", type=float, default=15)
    parser.add_argument("--greedy-only", action="store_true", help="leave out what draws at temperature 1")
    args = parser.parse_args()
    torch = model.ready()
    found = results.Results("serve")
    folder = checkpoint.make(args.shape, args.scratch)
    torch.cuda.empty_cache()
    sys.exit(run(found, folder, args))


def run(found, folder, args):
    # The checkpoint's own sampling is greedy; OpenAI's default draws.
    runs = [("greedy", args.streams)] + [("temperature 1", args.streams[-2:])] * (not args.greedy_only)
    for sampling, streams in runs:
        options = [] if sampling == "greedy" else ["--set", "model.sampling_defaults=openai"]
        began = time.monotonic()
        with server(folder, args, *options) as process:
            if process is None:
                found.note(f"the server ({sampling}) did not become ready in {time.monotonic() - began:.0f} s")
                return 1
            found.add("start", sampling=sampling, **{"ready after s": time.monotonic() - began})
            for count in streams:
                if results.is_over(0.85):
                    found.note(f"cut before {count} streams ({sampling}) after {results.spent():.0f} s")
                    return 0
                measure(found, process, count, args, sampling)
            before = cpu_s(process.pid)
            time.sleep(IDLE_S)
            found.add("idle", sampling=sampling, **{"cores": (cpu_s(process.pid) - before) / IDLE_S, "seconds": IDLE_S})
    return 0


if __name__ == "__main__":
    main()
