"""The status page: how long its first page takes in a long history, and what browsers that follow events cost."""

import select
import socket
import sqlite3
import threading
import time

from bench import MIB, Client, Fake, fact, figure, median, shown, until
from daemon import TOKEN, Daemon, moment

DAY_MS = 86_400_000


def main(microglia, fake, small):
    homeserver = Fake(fake, 10)
    try:
        first_page(microglia, homeserver, small)
        streams(microglia, homeserver, small)
    finally:
        homeserver.stop()
    watched_run(microglia, fake, small)


def jobs(count, schedule="30 3 * * *"):
    common = f'kind = "request"\nschedule = "{schedule}"\nmethod = "GET"\npath = "/_matrix/client/versions"\nmode = "apply"\n'
    return "".join(f"[jobs.job-{number:04}]\n{common}" for number in range(count))


def fill(daemon, count, runs):
    """Records runs of the last 90 days, every hundredth of which failed."""
    database = sqlite3.connect(daemon.config.parent / "state" / "history.db")
    start = int(time.time() * 1000) - 90 * DAY_MS
    step = 90 * DAY_MS // runs
    rows = (
        (f"job-{n % count:04}", start + n * step, start + n * step + 900, "failed" if n % 100 == 7 else "succeeded", n % 10)
        for n in range(runs)
    )
    database.executemany(
        "INSERT INTO runs (job, kind, homeserver, mode, cause, started_at, finished_at, attempts, outcome, planned, done)"
        " VALUES (?, 'request', 'main', 'apply', 'schedule', ?, ?, 1, ?, ?5, ?5)",
        rows,
    )
    database.commit()
    database.close()


def first_page(microglia, homeserver, small):
    count, runs = (20, 1000) if small else (200, 1_000_000)
    daemon = Daemon(microglia, homeserver, "page-of-many", jobs(count))
    daemon.stop()
    fill(daemon, count, runs)
    daemon = Daemon(microglia, homeserver, "page-of-many", jobs(count))
    time.sleep(2 if small else 10)
    before = daemon.program.status("VmRSS")
    client = Client(daemon.url)
    took, size = [], 0
    for _ in range(50):
        start = time.monotonic()
        size = len(client.call("GET", "/", raw=True))
        took.append((time.monotonic() - start) * 1000)
    memory = (daemon.program.status("VmRSS") - before) / MIB
    what = f"first page with {count} jobs and {runs:,} runs"
    figure(f"{what}: median of 50", median(took), 20, " ms", note=f"from {min(took):.3g} to {max(took):.3g} ms")
    figure(f"{what}: size", size / 1000, 50, " kB")
    figure(f"{what}: memory above that without the page", memory, 4, " MiB")
    for path in ("/runs", "/runs?outcome=failed", "/runs?outcome=panicked", "/jobs/job-0000", "/runs?mode=dry-run"):
        start = time.monotonic()
        client.call("GET", path, raw=True)
        fact(f"{path}: {(time.monotonic() - start) * 1000:.3g} ms")
    daemon.stop()


def streams(microglia, homeserver, small):
    """A hundred browsers follow the events of a daemon at rest, and then of one that works."""
    seconds = 5 if small else 60
    daemon = Daemon(microglia, homeserver, "page-streams", jobs(10, "0 0 1 1 *"))
    try:
        time.sleep(2)
        alone = used(daemon, seconds)
        following = [follow(daemon) for _ in range(100)]
        watched = used(daemon, seconds)
        more = (watched - alone) * 1000 * 60 / seconds
        figure("100 event streams at rest: more CPU per minute", more, 60, " ms", note=shown([alone, watched], " s"))
        for stream in following:
            stream.close()
    finally:
        daemon.stop()


def watched_run(microglia, fake, small):
    """Runs of many changes, by turns with nobody and with ten signed-in browsers that follow the events."""
    changes, times = (100, 1) if small else (10_000, 3)
    took = {0: [], 10: []}
    for number in range(times):
        for browsers, found in took.items():
            found.append(run_of_changes(microglia, fake, changes, browsers, number))
    watched, alone = median(took[10]), median(took[0])
    note = "; ".join(f"{browsers} browsers: {shown(found, ' s')}" for browsers, found in took.items())
    figure(f"run of {changes:,} changes with ten browsers, relative to one without", watched / alone, 1.05, note=note)


def run_of_changes(microglia, fake, changes, browsers, number):
    """Returns the seconds from the start of the run to its end."""
    # Every second account has such an id.
    homeserver = Fake(fake, changes * 2)
    job = '[jobs.ids]\nkind = "remove-external-ids"\nmode = "apply"\nproviders = ["saml"]\naccounts = "all"\nmax_changes = "unlimited"\n'
    daemon = Daemon(microglia, homeserver, f"watched-{browsers}-{number}", job)
    stop = threading.Event()
    following = [follow(daemon, TOKEN) for _ in range(browsers)]
    reader = threading.Thread(target=read_all, args=(following, stop))
    try:
        reader.start()
        Client(daemon.url, TOKEN).call("POST", "/api/v1/jobs/ids/run")
        until("the run", 1200, lambda: daemon.finished().get("succeeded"), every=0.5)
        [run] = daemon.runs(10)
        assert run["done"] == changes, run
        return moment(run["finished_at"]) - moment(run["started_at"])
    finally:
        stop.set()
        reader.join()
        for stream in following:
            stream.close()
        daemon.stop()
        homeserver.stop()


def read_all(streams, stop):
    while not stop.is_set():
        for stream in select.select(streams, [], [], 0.1)[0]:
            assert stream.recv(1 << 16), "an event stream ended"


def used(daemon, seconds):
    start = daemon.program.cpu_seconds()
    time.sleep(seconds)
    return daemon.program.cpu_seconds() - start


def follow(daemon, token=None):
    host, port = daemon.listen.split(":")
    stream = socket.create_connection((host, int(port)))
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    stream.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {daemon.listen}\r\n{authorization}\r\n".encode())
    assert stream.recv(12) == b"HTTP/1.1 200"
    return stream
