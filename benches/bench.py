"""Shared code of the measurements: monitored processes, HTTP over one connection, and a line per figure."""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WORK = TARGET / "bench"
DEMO = ROOT / "deploy" / "demo"
MIB = 1024 * 1024

missed = []


def build():
    """Builds the program and the load generator; returns the paths of both."""
    # The fake as the tests have it: in one release build with it, microglia would get the tests' features of its libraries.
    microglia, fake = cargo("--release", "--bin", "microglia"), cargo("--bench", "fake")
    shutil.rmtree(WORK / "now", ignore_errors=True)
    (WORK / "now").mkdir(parents=True)
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d', time.gmtime())}", flush=True)
    return microglia, fake


def cargo(*arguments):
    """Builds one program; returns its path."""
    command = ["cargo", "build", "--locked", "--message-format=json-render-diagnostics"]
    command += ["--manifest-path", str(ROOT / "Cargo.toml"), *arguments]
    built = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    artifacts = [json.loads(line) for line in built.stdout.splitlines()]
    [program] = [
        it["executable"] for it in artifacts if it.get("executable") and it["target"]["name"] == arguments[-1]
    ]
    return program


def figure(name, value, target, unit="", worst=max, note=""):
    """Prints a figure with its target; `worst` is `max` where the target is an upper bound, `min` where it is a lower one."""
    kept = worst(value, target) == target
    bound = "at most" if worst is max else "at least"
    if not kept:
        missed.append(name)
    note = f" ({note})" if note else ""
    load = os.getloadavg()[0]
    print(f"{'kept  ' if kept else 'MISSED'} {name}: {value:.4g}{unit}, {bound} {target:g}{unit}{note} [load {load:.1f}]", flush=True)


def fact(text):
    print(f"       {text}", flush=True)


def median(values):
    return statistics.median(values)


def shown(values, unit=""):
    return ", ".join(f"{value:.3g}{unit}" for value in values)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, seconds, look, every=0.02):
    give_up = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > give_up:
            raise SystemExit(f"{what}: not after {seconds} s")
        time.sleep(every)
    return found


class Program:
    """A process that ends with this one, however that ends."""

    def __init__(self, command, log=None, environment=None, **options):
        output = open(log, "ab") if log else subprocess.DEVNULL
        command = [sys.executable, str(DEMO / "tied.py"), str(os.getpid()), *map(str, command)]
        options = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL, **options}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MICROGLIA", "STATE_"))}
        self.process = subprocess.Popen(command, env={**clean, **(environment or {})}, **options)
        self.pid = self.process.pid

    def status(self, field):
        """A size of /proc/PID/status in bytes."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise ProcessLookupError

    def cpu_seconds(self):
        """The CPU time of all threads, in nanoseconds."""
        total = 0
        for task in pathlib.Path(f"/proc/{self.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def peak(self):
        """Waits for the end; returns the greatest resident size seen, which only grows."""
        # Not ru_maxrss: in a child it begins with what this interpreter had.
        peak = 0
        while self.process.poll() is None:
            try:
                if b"tied.py" not in pathlib.Path(f"/proc/{self.pid}/cmdline").read_bytes():
                    peak = max(peak, self.status("VmHWM"))
            except (ProcessLookupError, FileNotFoundError):
                pass
            time.sleep(0.005)
        return peak

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Client:
    """One connection that is kept open, and JSON."""

    def __init__(self, url, token=None):
        self.url, self.token = url, token
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)

    def call(self, method, path, body=None, raw=False):
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode(errors='replace')}")
        return text if raw else json.loads(text)

    def get(self, path):
        return self.call("GET", path)


def quoted(text):
    return urllib.parse.quote(text, safe="")


def side_by_side(count, items, work):
    """Gives each of `count` threads a share of the items."""
    failures = []

    def share(number):
        try:
            work(items[number::count])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=share, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Fake:
    """The fake homeserver of the tests, in a process of its own."""

    token = "fake-token"

    def __init__(self, program, count, world="serve", *more):
        self.process = Program([program, world, count, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.url = self.process.process.stdout.readline().decode().strip()

    def requests(self):
        """How many arrived since the last call; for worlds of rooms, which then change."""
        self.process.process.stdin.write(b"\n")
        self.process.process.stdin.flush()
        return int(self.process.process.stdout.readline())

    def stop(self):
        self.process.stop()


def write_config(name, url, token, jobs, homeserver="", daemon=""):
    """Writes a config with a state directory of its own; returns its path."""
    home = WORK / "now" / name
    home.mkdir(parents=True, exist_ok=True)
    token_file = home / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    config = home / "microglia.toml"
    config.write_text(
        f"[daemon]\nstate_dir = {json.dumps(str(home / 'state'))}\n{daemon}\n"
        f'[homeservers.main]\nurl = "{url}"\naccess_token_file = "token"\n{homeserver}\n{jobs}'
    )
    return config


UNLIMITED = 'max_requests_per_second = "unlimited"\nmax_joins_per_second = "unlimited"\n'


def report_of(microglia, config, *arguments):
    """Runs a job; returns its report and the seconds that the whole command took."""
    start = time.monotonic()
    done = subprocess.run([microglia, "--config", config, "run", "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    took = time.monotonic() - start
    if done.returncode != 0:
        raise SystemExit(f"microglia run {' '.join(arguments)}: exit {done.returncode}\n{done.stderr.decode()}{done.stdout.decode()[:2000]}")
    return json.loads(done.stdout), took
