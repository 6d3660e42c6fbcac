"""What the daemon costs with five hundred homeservers, of which fifty are down, and six jobs on each."""

import contextlib
import sqlite3
import subprocess
import time

import bench
from bench import MIB, Client, Fake, Program, fact, figure, free_port, median, shown, until
from daemon import RUNS

KINDS = {
    "media": 'kind = "purge-local-media"\nolder_than = "180d"\n',
    "remote": 'kind = "purge-remote-media"\nolder_than = "30d"\n',
    "lobby": 'kind = "join-rooms"\nrooms = ["#lobby:fake.test"]\nexcept_users = ["@bot-*"]\n',
    "staff": 'kind = "join-rooms"\nrooms = ["#staff:fake.test"]\n',
    "ids": 'kind = "remove-external-ids"\nproviders = ["oidc-google"]\naccounts = ["deactivated"]\n',
    "cache": 'kind = "request"\nmethod = "GET"\npath = "/_synapse/admin/v1/server_version"\n',
}
JOB = "CASE n % 6 " + " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(KINDS)) + " END"
HOMESERVER = "printf('hs-%03d', n / 6 % (:jobs / 6))"
RECORDED = RUNS.replace("printf('job-%04d', n % :jobs)", f"{JOB} || '@' || {HOMESERVER}").replace("'main'", HOMESERVER)


class Fleet:
    """A main file with the jobs, and a file for each homeserver."""

    def __init__(self, microglia, name, fakes, count):
        self.microglia, self.count = microglia, count
        self.home = bench.WORK / "now" / name
        self.homeservers = self.home / "homeservers.d"
        self.homeservers.mkdir(parents=True)
        self.listen = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.listen}"
        self.config = self.home / "microglia.toml"
        self.log = self.home / "log"
        for file, text in (("token", Fake.token), ("admin-token", "admin-of-the-benchmarks")):
            (self.home / file).touch(mode=0o600)
            (self.home / file).write_text(text)
        self.fakes = fakes
        for number in range(count):
            self.add(number)
        self.write("30 3 * * *")

    def add(self, number):
        text = f'[homeservers.hs-{number:03}]\nurl = "{self.fakes.url_of(number)}"\naccess_token_file = "../token"\n'
        (self.homeservers / f"hs-{number:03}.toml").write_text(text)

    def write(self, schedule):
        jobs = "".join(f'[jobs.{name}]\nhomeserver = "*"\nschedule = "{schedule}"\nmode = "apply"\n{keys}' for name, keys in KINDS.items())
        self.config.write_text(
            f'include = ["homeservers.d/*.toml"]\n[daemon]\nstate_dir = "state"\nlisten = "{self.listen}"\n'
            f'admin_token_file = "admin-token"\n{jobs}'
        )

    def start(self):
        begin = time.monotonic()
        self.program = Program([self.microglia, "--config", self.config, "serve"], self.log, {"RUST_LOG": "warn"})
        until("the daemon", 60, self.is_ready, every=0.002)
        return (time.monotonic() - begin) * 1000

    def is_ready(self):
        if self.program.process.poll() is not None:
            raise SystemExit(f"the daemon ended: {self.log.read_text()[-2000:]}")
        try:
            return Client(self.url).call("GET", "/readyz", raw=True)
        except (OSError, SystemExit):
            return None

    def stop(self):
        assert self.program.stop() == 0, self.log.read_text()[-2000:]

    def milliseconds(self, method, path):
        client, begin = Client(self.url, "admin-of-the-benchmarks"), time.monotonic()
        answer = client.call(method, path, raw=True)
        return (time.monotonic() - begin) * 1000, answer

    def command(self, *arguments):
        begin = time.monotonic()
        done = subprocess.run([self.microglia, "--config", self.config, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return (time.monotonic() - begin) * 1000, done


def main(microglia, fake, small):
    count, runs = (50, 10_000) if small else (500, 1_000_000)
    fakes = Fakes(fake, count * 9 // 10)
    try:
        fleet = Fleet(microglia, "fleet", fakes, count)
        what = f"{count} homeservers, {count * 6:,} jobs"
        measured(fleet, what, small)
        remember(fleet, runs)
        measured(fleet, f"{what}, {runs:,} recorded runs", small)
    finally:
        fakes.stop()


class Fakes(Fake):
    """One fake homeserver at many addresses; behind the others nobody listens."""

    def __init__(self, program, addresses):
        self.process = Program([program, "serve", 10, addresses], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.port = self.process.process.stdout.readline().decode().strip().rsplit(":", 1)[1]

    def url_of(self, number):
        return f"http://127.1.{number // 250}.{number % 250 + 1}:{self.port}"


def measured(fleet, what, small):
    is_first = not (fleet.home / "state").exists()
    first = fleet.start()
    if is_first:
        fact(f"ready after the first start, {what}: {first:.0f} ms")
    fleet.stop()
    took = []
    for _ in range(1 if small else 5):
        took.append(fleet.start())
        fleet.stop()
    figure(f"ready after start, {what}", median(took), 500, " ms", note=shown(took))
    fleet.start()
    # The probes of the start, and the attempts at homeservers that are down.
    time.sleep(3 if small else 20)
    idle(fleet, what, small)
    asked(fleet, what, small)
    fleet.stop()


def idle(fleet, what, small):
    before, begin = fleet.program.cpu_seconds(), time.monotonic()
    time.sleep(5 if small else 120)
    took = time.monotonic() - begin
    used = (fleet.program.cpu_seconds() - before) * 1000 * 60 / took
    figure(f"idle, {what}: CPU in a minute", used, 120, " ms")
    parts = [f"{field} {fleet.program.status(field) / MIB:.1f}" for field in ("RssAnon", "RssFile")]
    figure(f"idle, {what}: resident", fleet.program.status("VmRSS") / MIB, 40, " MiB", note=", ".join(parts))


def asked(fleet, what, small):
    took = [fleet.milliseconds("GET", "/metrics") for _ in range(3 if small else 20)]
    text = took[0][1].decode()
    series(text, fleet.count)
    took = [one for one, _ in took]
    figure(f"/metrics, {what}", median(took), 100, " ms", note=f"slowest {max(took):.0f}; {len(text) / 1e6:.1f} MB")
    few = 2 if small else 10
    took = [fleet.milliseconds("POST", "/-/reload")[0] for _ in range(few)]
    figure(f"reload, {what}, none changed", median(took), 300, " ms", note=f"slowest {max(took):.0f}")
    took = []
    for minute in range(few):
        fleet.write(f"{minute} 4 * * *")
        took.append(fleet.milliseconds("POST", "/-/reload")[0])
    figure(f"reload, {what}, all changed", median(took), 300, " ms", note=f"slowest {max(took):.0f}")
    took = []
    for _ in range(few):
        for change in (fleet.add, lambda number: (fleet.homeservers / f"hs-{number:03}.toml").unlink()):
            change(fleet.count)
            took.append(fleet.milliseconds("POST", "/-/reload")[0])
    figure(f"reload, {what}, one homeserver added or removed", median(took), 300, " ms", note=f"slowest {max(took):.0f}")
    fact(f"resident after {few * 4} reloads: {fleet.program.status('VmRSS') / MIB:.1f} MiB")
    for arguments in (("check",), ("jobs",), ("jobs", "--homeserver", "hs-007"), ("runs", "--homeserver", "hs-007"), ("check", "--online")):
        took, done = fleet.command(*arguments)
        assert done.returncode in (0, 1), done.stderr.decode()[-2000:]
        fact(f"`microglia {' '.join(arguments)}`, {what}: {took:.0f} ms")
    for path in ("/api/v1/jobs?homeserver=hs-007", "/api/v1/runs?homeserver=hs-007"):
        fact(f"GET {path}, {what}: {fleet.milliseconds('GET', path)[0]:.0f} ms")


def series(text, count):
    """How many series each job and each homeserver has, where nothing has run yet."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    jobs = sum(line.startswith("microglia_job_") for line in lines)
    up = [line for line in lines if line.startswith("microglia_homeserver_")]
    one = sum('homeserver="hs-007"' in line for line in up)
    fact(f"series: {len(lines):,}; {jobs / (count * 6):.1f} for each job, {len(up) / count:.1f} for each homeserver, {one} for one that is up")


def remember(fleet, runs):
    """Records runs of all jobs."""
    with contextlib.closing(sqlite3.connect(fleet.home / "state" / "history.db")) as database, database:
        values = {"runs": runs, "jobs": fleet.count * 6, "since": int((time.time() - runs - 3600) * 1000)}
        database.execute(RECORDED, values)
