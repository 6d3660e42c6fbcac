"""microglia against the plain script and a bare load generator, on one real Synapse."""

import contextlib
import hashlib
import hmac
import json
import secrets
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

from bench import (
    DEMO, ROOT, TARGET, UNLIMITED, WORK, Client, Program, fact, figure, free_port, median, quoted, report_of, shown,
    side_by_side, until, write_config,
)

VERSION = "1.163.2"
SERVER_NAME = "demo.test"
ADMIN = "/_synapse/admin"
CLIENT = "/_matrix/client/v3"
# Runs Synapse with a clock that is so many seconds behind.
PAST = """
import runpy, time
now = time.time
time.time = lambda: now() - {}
runpy.run_module("synapse.app.homeserver", run_name="__main__")
"""


def user_id(number):
    return f"@user{number:05}:{SERVER_NAME}"


def external_ids(number):
    """Half of the accounts have an id, one in ten an id that is to be removed."""
    held = [("saml", f"saml-{number}")] if number % 2 == 0 else []
    held += [("oidc-google", f"google-{number}")] if number % 10 == 0 else []
    return [{"auth_provider": provider, "external_id": external_id} for provider, external_id in held]


def python_with_synapse():
    """The demo's virtual environment, created here if the demo was never run."""
    venv = TARGET / "demo" / "venv"
    done = venv / f"synapse-{VERSION}"
    if not done.exists():
        print(f"installing Synapse {VERSION} from PyPI (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [venv / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, f"matrix-synapse=={VERSION}"], check=True)
        done.touch()
    return venv / "bin/python"


def background_updates(home):
    """How many changes of the database schema are still to be made."""
    with contextlib.closing(sqlite3.connect(home / "homeserver.db", timeout=60)) as database:
        [[count]] = database.execute("SELECT COUNT(*) FROM background_updates")
    return count


class Synapse:
    """A Synapse with this many accounts, `members` of them (default: all) in every room; it is filled once and copied afterwards."""

    def __init__(self, users, rooms, members=None):
        self.users = users
        self.members = users if members is None else members
        python = python_with_synapse()
        template = WORK / f"synapse-{users}-users-{rooms}-rooms-of-{self.members}"
        if not (template / "seeded.json").exists():
            print(f"filling a Synapse with {users} accounts in {rooms} rooms (once; takes a few minutes)", flush=True)
            shutil.rmtree(template, ignore_errors=True)
            subprocess.run([sys.executable, DEMO / "homeserver.py", template], check=True, stdout=subprocess.DEVNULL)
            self.start(python, template)
            seeded = self.seed(rooms)
            # microglia waits for them before it changes anything, and rooms that they still have to look at cannot be purged.
            until("Synapse's background updates", 300, lambda: not background_updates(template), every=0.5)
            self.stop()
            (template / "seeded.json").write_text(json.dumps(seeded))
        home = WORK / "now" / template.name
        shutil.copytree(template, home)
        for file in home.glob("*.yaml"):
            file.write_text(file.read_text().replace(str(template), str(home)))
        seeded = json.loads((home / "seeded.json").read_text())
        self.home = home
        self.token, self.rooms = seeded["token"], seeded["rooms"]
        self.start(python, home)
        self.admin = Client(self.url, self.token)

    def start(self, python, home, days_ago=0):
        """`days_ago` sets its clock back."""
        config = json.loads((home / "homeserver.yaml").read_text())
        port = config["listeners"][0]["port"] = free_port()
        self.url = config["public_baseurl"] = f"http://127.0.0.1:{port}"
        (home / "homeserver.yaml").write_text(json.dumps(config))
        self.secret = config["registration_shared_secret"]
        self.log = home / "log"
        program = ["-c", PAST.format(days_ago * 86400)] if days_ago else ["-m", "synapse.app.homeserver"]
        command = [python, *program, "--config-path", home / "homeserver.yaml"]
        self.process = Program(command, self.log)

        def healthy():
            if self.process.process.poll() is not None:
                raise SystemExit(f"Synapse ended; its log is {self.log}")
            try:
                return Client(self.url).call("GET", "/health", raw=True)
            except OSError:
                return None

        until("Synapse's start", 60, healthy)

    def stop(self):
        self.process.stop()

    def seed(self, rooms):
        anyone = Client(self.url)
        nonce = anyone.get(f"{ADMIN}/v1/register")["nonce"]
        account = {"nonce": nonce, "username": "microglia", "password": secrets.token_hex(), "admin": True, "user_type": "bot"}
        fields = [nonce, account["username"], account["password"], "admin", "bot"]
        account["mac"] = hmac.new(self.secret.encode(), "\0".join(fields).encode(), hashlib.sha1).hexdigest()
        token = anyone.call("POST", f"{ADMIN}/v1/register", account)["access_token"]

        def make(numbers):
            admin = Client(self.url, token)
            for number in numbers:
                body = {"displayname": f"User {number}", "external_ids": external_ids(number)}
                admin.call("PUT", f"{ADMIN}/v2/users/{quoted(user_id(number))}", body)

        side_by_side(4, range(self.users), make)
        made = []
        for number in range(rooms):
            body = {"preset": "public_chat", "room_alias_name": f"room{number}", "room_version": "11"}
            made.append(Client(self.url, token).call("POST", f"{CLIENT}/createRoom", body)["room_id"])

        def fill(some):
            admin = Client(self.url, token)
            for room in some:
                for number in range(self.members):
                    admin.call("POST", f"{ADMIN}/v1/join/{quoted(room)}", {"user_id": user_id(number)})

        side_by_side(min(4, rooms), made, fill)
        return {"token": token, "rooms": made}

    def put_back(self):
        for number in range(0, self.users, 10):
            body = {"external_ids": external_ids(number)}
            self.admin.call("PUT", f"{ADMIN}/v2/users/{quoted(user_id(number))}", body)

    def requests(self, work):
        """The requests that Synapse logged while `work` ran, as (method, path), and its result."""
        self.settle_log()
        start = self.log.stat().st_size
        answer = work()
        self.settle_log()
        with self.log.open(errors="replace") as log:
            log.seek(start)
            lines = [line for line in log if "Processed request" in line and "?mark=" not in line]
        return [tuple(line.split('"')[1].split()[:2]) for line in lines], answer

    def settle_log(self):
        """Waits until the log shows a request that is sent now."""
        mark = f"/_matrix/client/versions?mark={secrets.token_hex(8)}"
        Client(self.url).get(mark)
        until("Synapse's log", 20, lambda: mark in self.log.read_bytes()[-20000:].decode(errors="replace"))


class OtherClient:
    """Somebody who sends a message to a room and syncs, then waits 0.3 s."""

    def __init__(self, synapse):
        self.client = Client(synapse.url, synapse.token)
        self.room = quoted(synapse.rooms[0])
        self.since = self.client.get(f"{CLIENT}/sync?timeout=0")["next_batch"]

    def latencies(self, over):
        """The seconds that each request took, until `over()`."""
        found = []
        while not over():
            start = time.monotonic()
            body = {"msgtype": "m.text", "body": "hello"}
            self.client.call("PUT", f"{CLIENT}/rooms/{self.room}/send/m.room.message/{time.monotonic_ns()}", body)
            found.append(time.monotonic() - start)
            start = time.monotonic()
            self.since = self.client.get(f"{CLIENT}/sync?timeout=0&since={self.since}")["next_batch"]
            found.append(time.monotonic() - start)
            time.sleep(0.3)
        return found


def count(requests, method, path=""):
    return sum(it[0] == method and it[1].startswith(path) for it in requests)


def naive(synapse, *arguments):
    start = time.monotonic()
    script = ROOT / "benches" / "naive.py"
    subprocess.run([sys.executable, script, synapse.url, synapse.token, *arguments], check=True)
    return time.monotonic() - start


def main(microglia, fake, small):
    users, rooms, repeats = (60, 2, 1) if small else (1000, 10, 5)
    synapse = Synapse(users, rooms)
    try:
        reading(synapse, microglia, fake, repeats)
        external_ids_removed(synapse, microglia, min(repeats, 3))
        beside(synapse, microglia, repeats)
        joins(synapse, microglia)
    finally:
        synapse.stop()
    if not small:
        few = Synapse(100, rooms)
        try:
            joins(few, microglia, compare=False)
        finally:
            few.stop()


def ids_job(provider):
    return (
        f'[jobs.ids]\nkind = "remove-external-ids"\nproviders = ["{provider}"]\naccounts = "all"\n'
        'max_changes = "unlimited"\n'
    )


def reading(synapse, microglia, fake, repeats):
    """How fast accounts are read, compared with a bare load generator."""
    config = write_config("reading", synapse.url, synapse.token, ids_job("oidc-google"), UNLIMITED)
    names = "\n".join(user_id(number) for number in range(synapse.users))
    ours, bare = [], []
    for number in range(repeats + 1):
        report, took = report_of(microglia, config, "ids", "--dry-run")
        load = [fake, "load", synapse.url, synapse.token, "4"]
        seconds = float(subprocess.run(load, input=names, text=True, stdout=subprocess.PIPE, check=True).stdout)
        # The first round warms Synapse's caches for both.
        if number:
            ours.append(synapse.users / took)
            bare.append(synapse.users / seconds)
    ratio = median([our / one for our, one in zip(ours, bare)])
    figure("accounts read, rate of the whole command against the bare generator's", ratio, 0.9, worst=min)
    fact(f"accounts a second: microglia {shown(ours)}; bare {shown(bare)}")


def external_ids_removed(synapse, microglia, repeats):
    nobody = write_config("nobody", synapse.url, synapse.token, ids_job("nobody"), UNLIMITED)
    requests, _ = synapse.requests(lambda: report_of(microglia, nobody, "ids", "--apply"))
    figure("PUTs where no external id matches", count(requests, "PUT"), 0)
    config = write_config("removing", synapse.url, synapse.token, ids_job("oidc-google"), UNLIMITED)
    ours, theirs = [], []
    for _ in range(repeats):
        requests, took = synapse.requests(lambda: naive(synapse, "remove-external-ids", "oidc-google"))
        theirs.append(took)
        naive_puts = count(requests, "PUT")
        synapse.put_back()
        requests, (report, took) = synapse.requests(lambda: report_of(microglia, config, "ids", "--apply"))
        ours.append(took)
        assert report["done"] == synapse.users // 10, report
        synapse.put_back()
    ratio = median([our / their for our, their in zip(ours, theirs)])
    figure("external ids, 10 % match: time against the script's", ratio, 0.6)
    fact(f"seconds: microglia {shown(ours)}; script {shown(theirs)}")
    fact(f"PUTs: microglia {count(requests, 'PUT')}; script {naive_puts}")


def joins(synapse, microglia, compare=True):
    names = ", ".join(json.dumps(room) for room in synapse.rooms)
    job = f'[jobs.rooms]\nkind = "join-rooms"\nrooms = [{names}]\nmax_changes = "unlimited"\n'
    config = write_config("joining", synapse.url, synapse.token, job, UNLIMITED)
    requests, (report, took) = synapse.requests(lambda: report_of(microglia, config, "rooms", "--apply"))
    assert report["planned"] == 0, report
    what = f"{synapse.users} accounts, all in {len(synapse.rooms)} rooms"
    figure(f"{what}: requests", len(requests), 50, note=f"{took:.2f} s")
    per_room = sum("/rooms/" in path for _, path in requests) / len(synapse.rooms)
    fact(f"{per_room:g} of them for each room")
    if compare:
        requests, took = synapse.requests(lambda: naive(synapse, "join-rooms", *synapse.rooms))
        fact(f"the script: {len(requests)} requests, {took:.1f} s")


def beside(synapse, microglia, repeats):
    """How a run with the default limits affects another client."""
    config = write_config("beside", synapse.url, synapse.token, ids_job("oidc-google"))
    other = Client(synapse.url, synapse.token)
    other.get(f"{CLIENT}/sync?timeout=0")
    since = other.get(f"{CLIENT}/sync?timeout=0")["next_batch"]
    paths = [f"{CLIENT}/account/whoami", f"{CLIENT}/joined_rooms", f"{CLIENT}/sync?timeout=0&since={since}"]
    paths.append(f"{CLIENT}/profile/{quoted(user_id(1))}")

    def latencies(over):
        found = []
        while not over():
            for path in paths:
                start = time.monotonic()
                other.get(path)
                found.append(time.monotonic() - start)
                time.sleep(0.05)
        return found

    ratios, idle, swept = [], [], []
    for _ in range(repeats):
        end = time.monotonic() + 8
        idle.append(median(latencies(lambda: time.monotonic() >= end)))
        sweep = threading.Thread(target=report_of, args=(microglia, config, "ids", "--dry-run"))
        sweep.start()
        swept.append(median(latencies(lambda: not sweep.is_alive())))
        ratios.append(swept[-1] / idle[-1])
    figure("another client's median latency during a run, relative to an idle Synapse", median(ratios), 1.5)
    fact(f"ms: idle {shown([it * 1000 for it in idle])}; during a run {shown([it * 1000 for it in swept])}")
