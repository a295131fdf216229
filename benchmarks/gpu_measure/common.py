"""What the GPU measurements share: a supervised worker, results as JSON lines, interleaved timing.

A program's cases run in a worker process. A candidate that crashes the device or hangs ends the
worker; the supervisor records it, starts another worker without that candidate and goes on with the
same case, until the time given is over. Every result is on disk before the next one is begun.
"""

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
_WORKER = "CURVEDIT_MEASURE_WORKER"
_START = 8.0  # seconds that a worker takes to begin
_LEAST = 8.0  # seconds: with less left no worker is started again
_TURN = 4e-4  # seconds that a timed turn takes at least, in several calls if need be
_HERTZ = 2e9  # at least the clock that torch.cuda._sleep counts

# d, tokens, dtypes of syrk.py; the first dtype is the one the goals are stated for.
SYRK_SIZES = (4096, 11008, 14336, 8192, 2048, 5120, 1024)
SYRK_TOKENS = (16384, 4096)
# (m, n) of staircase.py, exponents of the spectra i^-a, and shares of the mass kept.
STAIRCASE_SHAPES = ((11008, 4096), (4096, 4096), (14336, 4096))
EXPONENTS, SHARES = (1.0, 0.8, 0.5), (0.8, 0.6, 0.95)


def syrk_case(d, tokens, dtype="bfloat16", kind=""):
    """The name of a case of syrk.py; ``kind`` is "", "weighted" or "pair"."""
    return f"d={d} tokens={tokens} {dtype}{kind and ' '}{kind}"


def staircase_case(m, n, exponent, share, op="project"):
    """The name of a case of staircase.py."""
    return f"{op} {m}x{n} i^-{exponent:g} keeps {share:g}"


def main(doc, run, *, seconds, stall=30.0):
    """Supervise, or, in a worker, call ``run(session)``.

    ``stall``: seconds after which a candidate that has not ended counts as hanging.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file that results are added to")
    parser.add_argument("--seconds", type=float, default=seconds, help="limit on the whole run")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name has a match")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    options = parser.parse_args()
    if _WORKER in os.environ:
        run(Session(options, json.loads(os.environ[_WORKER])))
        return 0
    return _supervise(options, stall)


def _supervise(options, stall):
    deadline = time.time() + options.seconds
    banned, lost, failures = [], [], 0
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state.json")
        state.write_text(json.dumps({"case": "", "candidate": "", "done": []}))
        while failures < 8:
            given = {"state": str(state), "deadline": deadline, "banned": banned}
            given["done"] = json.loads(state.read_text())["done"] + lost
            environment = {**os.environ, _WORKER: json.dumps(given)}
            worker = subprocess.Popen([sys.executable, *sys.argv], env=environment)
            signal.signal(signal.SIGTERM, lambda *_, it=worker: (it.kill(), sys.exit(143)))
            reason = _watched(worker, state, deadline, stall)
            if not reason:
                return 0
            failures += 1
            last = json.loads(state.read_text())
            fault = {"case": last["case"], "candidate": last["candidate"], "fault": reason}
            _append(options.json, {"program": Path(sys.argv[0]).stem, "kind": "fault", **fault})
            print(f"{fault['case']:36} {fault['candidate']:28} {reason}", flush=True)
            if reason == "time is over":
                return 0
            if deadline - time.time() < _LEAST or not last["case"]:
                return 1
            banned += filter(None, [last["candidate"]])
            lost += [] if last["candidate"] else [last["case"]]
    return 1


def _watched(worker, state, deadline, stall):
    """Wait for the worker; return "" or why it ended early."""
    ready = time.time() + _START
    while worker.poll() is None:
        time.sleep(0.05)
        now = time.time()
        hangs = now - max(ready, state.stat().st_mtime) > stall
        if now > deadline or hangs:
            worker.kill()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            return "time is over" if now > deadline else f"no answer within {stall:g} s"
    return f"the process ended with {worker.returncode}" if worker.returncode else ""


def _append(path, record):
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Session:
    """What a program's worker knows: its device, its time, its results file."""

    def __init__(self, options, given):
        import torch

        self.torch, self.dry, self.path = torch, options.dry, options.json
        self.program, self.only = Path(sys.argv[0]).stem, options.only
        if not options.dry and not torch.cuda.is_available():
            sys.exit(f"{self.program}: torch sees no GPU; --dry runs on the CPU")
        self.device = torch.device("cpu" if options.dry else "cuda")
        self.deadline, self.state = given["deadline"], Path(given["state"])
        self.banned, self.done = set(given["banned"]), list(given["done"])
        self.case = self.candidate = ""
        torch.manual_seed(0)
        self.write("device", **facts(self))

    def left(self):
        """Seconds until the limit."""
        return self.deadline - time.time()

    def write(self, kind, **fields):
        """Add one line to the results."""
        head = {"program": self.program, "kind": kind}
        head |= {"case": self.case} if self.case else {}
        _append(self.path, head | fields)

    def show(self, candidate, text):
        print(f"{self.case:36} {candidate:28} {text}", flush=True)

    def cases(self, names, seconds=1.0):
        """Go through the names of cases not done yet, while ``seconds`` are left for one."""
        for name in names:
            if name in self.done or not re.search(self.only, name):
                continue
            self.case = name
            if self.left() < seconds:
                self.write("skipped", why=f"{self.left():.1f} s left")
                continue
            self.note("")
            yield name
            self.done.append(name)
            self.free()
        self.case = ""
        self.note("")

    def note(self, candidate):
        """Tell the supervisor what runs now."""
        self.candidate = candidate
        text = json.dumps({"case": self.case, "candidate": candidate, "done": self.done})
        other = self.state.with_suffix(".new")
        other.write_text(text)
        other.replace(self.state)

    def attempt(self, candidate, function):
        """Call the function, or return None, with the reason written down, if it fails."""
        if candidate in self.banned:
            return None
        self.note(candidate)
        try:
            result = function()
            self.wait()
            return result
        except Exception as error:  # noqa: BLE001 - a candidate may fail in any way
            reason = f"{type(error).__name__}: {error}"[:400]
        self.write("failed", candidate=candidate, why=reason)
        self.show(candidate, reason.splitlines()[0][:90])
        self.free()
        try:
            self.wait()
        except Exception:  # noqa: BLE001 - the device is lost to this process
            os._exit(70)
        return None

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def free(self):
        if self.device.type == "cuda":
            with suppress(RuntimeError):
                self.torch.cuda.empty_cache()

    def sets(self, size):
        """How many sets of ``size`` bytes exceed the L2 cache twice; at least two."""
        if self.dry:
            return 2
        cache = self.torch.cuda.get_device_properties(0).L2_cache_size
        return min(32, max(2, math.ceil(2 * cache / size)))


def facts(session):
    """The device, its driver and clocks, and the versions of what runs on it."""
    torch = session.torch
    found = {"torch": torch.__version__, "python": sys.version.split()[0]}
    with suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    if session.device.type == "cpu":
        return found | {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    fields = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        answers = asked.stdout.strip().split(", ")
        found["nvidia-smi"] = dict(zip(fields.split(","), answers, strict=False))
    return found | {
        "name": properties.name,
        "memory": properties.total_memory,
        "processors": properties.multi_processor_count,
        "l2": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def interleaved(session, runs, *, rounds=11, budget=math.inf, ahead=0.02):
    """Time candidates in turn, so that ratios share the device's state.

    Args:
        session: The worker's session.
        runs: Name to a function of the number of a set of inputs.
        rounds: Turns of each; fewer, but no less than 3, where ``budget`` would be exceeded.
        budget: Seconds for all of it.
        ahead: Seconds, at most, that the device waits for the host to queue a turn's calls.

    Returns:
        Name to ``ms`` (the median per call), ``q1``, ``q3``, ``rounds``, ``calls`` (per turn) and
        ``host_us`` (what one call keeps the host busy). Failed candidates are missing. A turn
        begins when the calls have been queued, so that the host's share is not in the time, unless
        a call waits for the device itself.
    """
    ready = {}
    for name, run in runs.items():
        found = session.attempt(name, lambda run=run: _warmed(session, run))
        if found is not None:
            ready[name] = (run, *found)
    total = sum(max(_TURN, seconds) for _, seconds, _ in ready.values())
    rounds = max(3, min(rounds, int(min(budget, session.left() - 1) / max(total, 1e-9))))
    taken = {name: [] for name in ready}
    for turn in range(rounds):
        for name, (run, seconds, host) in list(ready.items()):
            calls = max(1, min(16, math.ceil(_TURN / max(seconds, 1e-9))))
            timed = session.attempt(
                name, lambda each=(run, turn, calls, host): _turn(session, *each, ahead)
            )
            if timed is None:
                ready.pop(name)
            else:
                taken[name].append(timed)
    return {
        name: _summary(taken[name], host) | {"seconds_first": seconds}
        for name, (_, seconds, host) in ready.items()
    }


def _warmed(session, run):
    """Seconds of a second call on the device and on the host."""
    run(0)
    session.wait()
    began = time.perf_counter()
    run(1)
    host = time.perf_counter() - began
    session.wait()
    return time.perf_counter() - began, host


def _turn(session, run, turn, calls, host, ahead):
    """Milliseconds per call."""
    if session.device.type == "cpu":
        began = time.perf_counter()
        for call in range(calls):
            run(turn * calls + call)
        return 1e3 * (time.perf_counter() - began) / calls
    cuda = session.torch.cuda
    start, stop = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    cuda._sleep(int(_HERTZ * min(ahead, 2e-5 + 1.5 * host * calls)))
    start.record()
    for call in range(calls):
        run(turn * calls + call)
    stop.record()
    session.wait()
    return start.elapsed_time(stop) / calls


def _summary(times, host):
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else 3 * times
    return {
        "ms": round(middle, 5),
        "q1": round(low, 5),
        "q3": round(high, 5),
        "rounds": len(times),
        "host_us": round(1e6 * host, 1),
    }


@contextmanager
def precision(name):
    """torch's precision of float32 products: "highest" or "high", which is TF32."""
    import torch

    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def at(name, run):
    """The function, with its float32 products in this precision."""

    def call(*arguments):
        with precision(name):
            return run(*arguments)

    return call
