"""The runner: gives cases to a worker, restarts it when it dies or hangs, and reports the faults."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz import TARGETS

_ROOT = Path(__file__).parents[2]
_RESTART = 500  # cases of a worker, so that what it piles up does not hide a case's own memory
_VARIES = r"\[.*\]|'.*'|\".*\"|\S*/\S+|\S*[0-9]\S*"  # in the description of a fault
_START = 60  # seconds of computing until a worker must be ready
_WAITING = 5  # times the limit of computing: how long a case may also wait


class Worker:
    """A process that runs cases, in a folder of its own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zsq-fuzz-", ignore_cleanup_errors=True)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the worker
        self.left = _RESTART
        settings = json.dumps([arguments.seed, arguments.target, arguments.megabytes])
        own = [str(_ROOT / one) for one in ("src", "", "tests/helpers")]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "always", "-m", "tests.fuzz.worker", settings],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
            cwd=_ROOT,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join([*own, *sys.path]),
                "TMPDIR": self._folder.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            },
        )  # fmt: skip
        if self._answer(_START) != "ready":
            raise SystemExit(f"the worker does not start:\n{self._printed()}")

    def run(self, target: str, case: int, seconds: float) -> dict[str, Any]:
        """The worker's judgement of a case; of its death or delay when there is none."""
        assert self._process.stdin is not None
        self.left -= 1
        self._process.stdin.write(f"{target} {case}\n".encode())
        self._process.stdin.flush()
        answer = self._answer(seconds)
        if isinstance(answer, dict):
            self.left *= not any(fault.startswith("child") for fault in answer["faults"])
            return answer
        self.left = 0
        if answer == "late":
            self._process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.close()
        fault = f"crash: the process died ({self._process.returncode})"
        fault = f"hang: over {seconds:g} s" if answer == "late" else fault
        trace = self._printed()
        where = re.search(r'File "\S*/zsqretrieval/(\S+)", line (\d+)', trace)
        fault += f" ({where[1]}:{where[2]})" if where else ""
        return {"what": "", "outcome": "", "faults": [fault], "trace": trace}

    def close(self) -> None:
        """End the worker and every process that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self, seconds: float) -> Any:
        assert self._process.stdout is not None
        computed, end = self._computed() + seconds, time.monotonic() + _WAITING * seconds
        while not select.select([self._process.stdout], [], [], 0.5)[0]:
            if self._computed() > computed or time.monotonic() > end:
                return "late"
        line = self._process.stdout.readline()
        return json.loads(line) if line else "dead"

    def _computed(self) -> float:
        """Seconds that the worker has computed: on a busy machine it waits, which is no fault."""
        times = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def _printed(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-5000:]


def fuzz(arguments: argparse.Namespace) -> int:
    """Run the cases and print the report; the number of faults."""
    counts = {name: Counter[str]() for name in arguments.target}
    faults: dict[str, list[str]] = {}  # replay commands by kind
    begun = time.monotonic()
    numbers = itertools.count() if arguments.case is None else [arguments.case]
    worker: Worker | None = None
    for number, name in ((n, one) for n in itertools.islice(numbers, arguments.cases) for one in counts):
        began = time.monotonic()
        if began - begun > 60 * arguments.minutes:
            break
        if worker is None or not worker.left:
            if worker is not None:
                worker.close()
            worker = Worker(arguments)
        result = worker.run(name, number, arguments.seconds)
        counts[name]["cases"] += 1
        counts[name]["milliseconds"] += round(1000 * (time.monotonic() - began))
        counts[name]["faults" if result["faults"] else result["outcome"]] += 1
        replay = f"python -m tests.fuzz --target {name} --seed {arguments.seed} --case {number}"
        for fault in result["faults"]:
            kind = f"{name}: {re.sub(_VARIES, '#', ' '.join(fault.split()))[:90]}"
            if kind not in faults:
                print(f"FAULT {name}: {fault[:1000]}\n  {result['what'][:1000]}\n  {replay}", flush=True)
            faults.setdefault(kind, []).append(replay)
        if arguments.case is not None:
            print(f"{result['what']}\n{result['outcome']} {result['faults']}\n{result['trace']}")
    if worker is not None:
        worker.close()
    _report(counts, faults, time.monotonic() - begun)
    return len(faults)


def _report(counts: dict[str, Counter[str]], faults: dict[str, list[str]], seconds: float) -> None:
    columns = ("cases", "right", "refused", "skipped", "faults", "milliseconds")
    print(f"\n{'target':<10}" + "".join(f"{name:>13}" for name in columns))
    total = sum(counts.values(), Counter())
    for name, found in {**counts, "all": total}.items():
        print(f"{name.rpartition(':')[2]:<10}" + "".join(f"{found[column]:>13}" for column in columns))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = f"{seconds / 60:.1f} minutes, {(used.ru_utime + used.ru_stime) / 60:.1f} of them computing"
    print(f"{total['cases']} cases in {spent}; {len(faults)} kinds of faults")
    for kind, replays in faults.items():
        print(f"{len(replays):>5} x {kind}\n        {replays[0]}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Feed damaged and hostile input to the library. An input is right if the answer is that "
        "of an exact reference, if the library refuses it with an error of its own, or skips it by name. A "
        "fault is anything else: another exception, a dead process, a hang, too much memory, a wrong "
        "answer, a foreign warning or output, changed files outside, or a process left behind. Exit code 1 "
        "if there is a fault. Linux only.",
        epilog="Cases depend on target, seed and number alone; a fault is printed with the command that "
        "replays it.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=float("inf"), help="end after that time")
    add("--cases", type=int, help="end after that many cases of each target")
    add("--target", action="append", help=f"{', '.join(TARGETS)} (default: all), or module:Class; repeat")
    add("--seed", type=int, default=0, help="of every draw (default 0)")
    add("--case", type=int, help="replay the case of this number, and show its traceback")
    add("--seconds", type=float, default=20, help="of computing for one case; five times as many of waiting")
    # An image of 200 megapixels takes 0.8 GB as RGBA and 0.6 GB as RGB.
    add("--megabytes", type=int, default=2500, help="limit of memory for one case (default 2500)")
    arguments = parser.parse_args()
    if arguments.cases is arguments.case is None and arguments.minutes == float("inf"):
        parser.error("say when to end: --minutes, --cases or --case")
    arguments.target = arguments.target or list(TARGETS)
    sys.exit(1 if fuzz(arguments) else 0)


if __name__ == "__main__":
    main()
