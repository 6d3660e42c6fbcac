"""The resource usage and the start delay of the daemon with a thousand jobs."""

import calendar
import contextlib
import json
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request

from bench import MIB, Client, Fake, Program, fact, figure, free_port, median, shown, until, write_config

KINDS = {
    "purge-local-media": 'older_than = "180d"\n',
    "join-rooms": 'rooms = ["#lobby:fake.test", "#staff:fake.test"]\nexcept_users = ["@bot-*"]\n',
    "request": 'method = "GET"\npath = "/_synapse/admin/v1/server_version"\n',
}
MANY_RUNS = 'max_concurrent_runs = 2000\nmax_requests_per_second = "unlimited"\n'
TOKEN = "admin-of-the-benchmarks"
LIFTED = MANY_RUNS + "max_concurrent_requests = 64\n"


class Daemon:
    def __init__(self, microglia, homeserver, name, jobs, limits=LIFTED):
        self.microglia, self.homeserver, self.name, self.limits = microglia, homeserver, name, limits
        self.listen = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.listen}"
        self.config = self.write(jobs)
        admin_token = self.config.parent / "admin-token"
        admin_token.touch(mode=0o600)
        admin_token.write_text(TOKEN)
        self.log = self.config.parent / "log"
        start = time.monotonic()
        self.program = Program([microglia, "--config", self.config, "serve"], self.log, {"RUST_LOG": "warn"})
        until("the daemon", 30, self.is_ready, every=0.002)
        self.ready_seconds = time.monotonic() - start

    def write(self, jobs):
        daemon = f'listen = "{self.listen}"\nadmin_token_file = "admin-token"\n'
        return write_config(self.name, self.homeserver.url, self.homeserver.token, jobs, self.limits, daemon)

    def is_ready(self):
        if self.program.process.poll() is not None:
            raise SystemExit(f"the daemon ended: {self.log.read_text()[-2000:]}")
        try:
            return Client(self.url).call("GET", "/readyz", raw=True)
        except (OSError, SystemExit):
            return None

    def metrics(self):
        return Client(self.url).call("GET", "/metrics", raw=True).decode()

    def finished(self):
        """How many runs have ended, by outcome."""
        ended = {}
        for line in self.metrics().splitlines():
            if line.startswith("microglia_job_runs_total{"):
                outcome = line.split('outcome="')[1].split('"')[0]
                ended[outcome] = ended.get(outcome, 0) + int(float(line.split()[-1]))
        return ended

    def runs(self, limit):
        command = [self.microglia, "--config", self.config, "runs", "--json", "--limit", str(limit)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)

    def stop(self):
        assert self.program.stop() == 0, self.log.read_text()[-2000:]


def jobs(count, kind, schedule, mode="apply"):
    common = f'kind = "{kind}"\nschedule = "{schedule}"\nmode = "{mode}"\n{KINDS[kind]}'
    return "".join(f"[jobs.job-{number:04}]\n{common}" for number in range(count))


def main(microglia, fake, small):
    count = 50 if small else 1000
    homeserver = Fake(fake, 10)
    try:
        for kind in ("purge-local-media", "join-rooms"):
            idle(microglia, homeserver, kind, count, small)
        ready(microglia, homeserver, count, small)
        long_history(microglia, homeserver, small)
        for number in (1, count):
            for mode in ("apply", "dry-run"):
                delay(microglia, homeserver, number, mode, small)
        memory(microglia, homeserver, small)
    finally:
        homeserver.stop()


def idle(microglia, homeserver, kind, count, small):
    daemon = Daemon(microglia, homeserver, f"idle-{kind}", jobs(count, kind, "30 3 * * *"))
    time.sleep(2 if small else 10)
    before, start = daemon.program.cpu_seconds(), time.monotonic()
    time.sleep(5 if small else 60)
    took = time.monotonic() - start
    used = (daemon.program.cpu_seconds() - before) * 1000 * 60 / took
    figure(f"idle, {count} jobs ({kind}): CPU in a minute", used, 60, " ms")
    resident = daemon.program.status("VmRSS") / MIB
    parts = [f"{field} {daemon.program.status(field) / MIB:.1f}" for field in ("RssAnon", "RssFile")]
    figure(f"idle, {count} jobs ({kind}): resident", resident, 20, " MiB", note=", ".join(parts))
    if kind == "purge-local-media":
        asked(microglia, daemon, count)
    daemon.stop()


def asked(microglia, daemon, count):
    """Metrics and reloads, of the daemon that was idle."""
    client = Client(daemon.url, TOKEN)

    def milliseconds(work):
        start = time.monotonic()
        work()
        return (time.monotonic() - start) * 1000

    text = client.call("GET", "/metrics", raw=True)
    took = [milliseconds(lambda: client.call("GET", "/metrics", raw=True)) for _ in range(20)]
    figure(f"/metrics, {count} jobs", median(took), 50, " ms", note=f"slowest {max(took):.1f}; {len(text) / 1e6:.1f} MB")
    reload = lambda: client.call("POST", "/-/reload")
    took = [milliseconds(reload) for _ in range(10)]
    figure(f"reload, {count} unchanged jobs", median(took), 100, " ms", note=f"slowest {max(took):.1f}")
    took = []
    for number in range(10):
        daemon.write(jobs(count, "purge-local-media", f"{number} 4 * * *"))
        took.append(milliseconds(reload))
    figure(f"reload, {count} changed jobs", median(took), 100, " ms", note=f"slowest {max(took):.1f}")
    command = [microglia, "--config", daemon.config, "reload"]
    took = [milliseconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(10)]
    figure(f"`microglia reload`, {count} jobs", median(took), 100, " ms", note=f"slowest {max(took):.1f}")
    fact(f"resident after 30 reloads: {daemon.program.status('VmRSS') / MIB:.1f} MiB")


def ready(microglia, homeserver, count, small):
    first, again = [], []
    for number in range(1 if small else 5):
        for found in (first, again):
            daemon = Daemon(microglia, homeserver, f"ready-{number}", jobs(count, "purge-local-media", "30 3 * * *"))
            found.append(daemon.ready_seconds * 1000)
            daemon.stop()
    figure(f"ready after the first start, {count} jobs", median(first), 300, " ms", note=shown(first))
    figure(f"ready after a later start, {count} jobs", median(again), 300, " ms", note=shown(again))


RUNS = """
WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < :runs - 1)
INSERT INTO runs (job, kind, homeserver, mode, cause, scheduled_for, started_at, finished_at, attempts, outcome, message, planned)
SELECT printf('job-%04d', n % :jobs), 'purge-local-media', 'main', 'apply', 'schedule', :since + n * 1000, :since + n * 1000,
       :since + n * 1000 + 500, 1, iif(n / :jobs % 10 = 0, 'failed', 'succeeded'), NULL, 0 FROM n
"""
INDEXES = ("runs_by_outcome", "runs_by_start", "runs_unended", "runs_by_homeserver", "runs_by_mode", "runs_interrupted")


def long_history(microglia, homeserver, small):
    """Starts on many recorded runs: first as after an update, when the indexes are built, then with them."""
    count, runs = 200, 10_000 if small else 1_000_000
    name = "long-history"
    start = lambda: Daemon(microglia, homeserver, name, jobs(count, "purge-local-media", "30 3 * * *"))
    daemon = start()
    daemon.stop()
    state = daemon.config.parent / "state" / "history.db"
    with contextlib.closing(sqlite3.connect(state)) as database, database:
        for index in INDEXES:
            database.execute(f"DROP INDEX {index}")
        database.execute("DELETE FROM _sqlx_migrations WHERE version IN (5, 8)")
        # All within the time that runs are kept.
        database.execute(RUNS, {"runs": runs, "jobs": count, "since": int((time.time() - runs - 3600) * 1000)})
    daemon = start()
    fact(f"ready after the update that builds the indexes, {runs:,} recorded runs: {daemon.ready_seconds:.2f} s")
    daemon.stop()
    took = []
    for _ in range(1 if small else 5):
        daemon = start()
        took.append(daemon.ready_seconds * 1000)
        daemon.stop()
    what = f"{runs:,} recorded runs of {count} jobs"
    figure(f"ready after start, {what}", median(took), 300, " ms", note=shown(took))
    daemon = start()
    client = Client(daemon.url)
    for path in ("/api/v1/jobs", "/api/v1/runs?job=job-0007"):
        begin = time.monotonic()
        client.call("GET", path)
        figure(f"GET {path}, {what}", (time.monotonic() - begin) * 1000, 100, " ms")
    begin = time.monotonic()
    subprocess.run([microglia, "--config", daemon.config, "jobs"], check=True, stdout=subprocess.DEVNULL)
    figure(f"`microglia jobs`, {what}", (time.monotonic() - begin) * 1000, 100, " ms")
    daemon.stop()


def delay(microglia, homeserver, count, mode, small):
    """The delay between an occurrence and its run: as recorded, and as in the metric."""
    few = count == 1
    every, rounds = (2, 3 if small else 15) if few else (20, 1 if small else 3)
    daemon = Daemon(microglia, homeserver, f"delay-{count}-{mode}", jobs(count, "request", f"*/{every} * * * * *", mode))
    wanted = count * rounds
    until("the runs", 240, lambda: sum(daemon.finished().values()) >= wanted, every=0.5)
    daemon.stop()
    runs = [run for run in daemon.runs(wanted * 2) if run["trigger"] == "schedule"]
    assert all(run["outcome"] == "succeeded" for run in runs), next(run for run in runs if run["outcome"] != "succeeded")
    late = [(moment(run["started_at"]) - moment(run["scheduled_for"])) * 1000 for run in runs]
    ends = [(moment(run["finished_at"]) - moment(run["scheduled_for"])) * 1000 for run in runs]
    what = f"{count} due in one second ({mode})"
    note = f"median {median(late):.0f}; the last one ended after {max(ends):.0f}; {len(runs)} runs"
    figure(f"{what}: latest start", max(late), 600, " ms", note=note)


def moment(text):
    whole, _, part = text.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{part or 0}")


def memory(microglia, homeserver, small):
    """With the default number of concurrent requests: each connection keeps its buffers, and more are open the longer it runs."""
    few, many = (20, 100) if small else (100, 10_000)
    for kind, mode in (("request", "apply"), ("join-rooms", "dry-run")):
        count = 10 if small else 100
        daemon = Daemon(microglia, homeserver, f"memory-{kind}", jobs(count, kind, "* * * * * *", mode), MANY_RUNS)
        until("the first runs", 60, lambda: sum(daemon.finished().values()) >= few, every=0.05)
        early = daemon.program.status("VmRSS") / MIB
        start = time.monotonic()
        until("the other runs", 1200, lambda: sum(daemon.finished().values()) >= many, every=0.5)
        took, ended = time.monotonic() - start, daemon.finished()
        late = daemon.program.status("VmRSS") / MIB
        daemon.stop()
        note = f"{early:.1f} and {late:.1f}; {took:.0f} s; {ended}"
        figure(f"resident after {many:,} runs ({kind}, {mode}) above that after {few}", late - early, 3, " MiB", note=note)
