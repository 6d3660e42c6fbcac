"""Rounds over accounts that take many runs: how many, in how much memory, and what the next round costs."""

import json
import math
import subprocess
import time

from bench import MIB, Fake, Program, fact, figure, shown, write_config

# Scaled from the defaults, 50 requests per second and 1 h: a run reads as many accounts as there.
RATE, TIME_LIMIT = 2_000, 90
JOBS = f"""
[defaults]
time_limit = "{TIME_LIMIT}s"
max_changes = "unlimited"

[jobs.ids]
kind = "remove-external-ids"
providers = ["nobody"]
accounts = "all"

[jobs.join]
kind = "join-rooms"
rooms = ["#lobby:fake.test"]
"""


def main(microglia, fake, small):
    accounts = 20_000 if small else 1_000_000
    few = rounds(microglia, fake, 1_000)
    many = rounds(microglia, fake, accounts)
    for job, (runs, peak, first, second) in many.items():
        arithmetic = math.ceil(accounts / (RATE * TIME_LIMIT / 2)) if job == "ids" else 1
        figure(f"{job}: runs of a round over {accounts:,} accounts", runs, arithmetic + 1, note=f"by arithmetic {arithmetic}")
        figure(f"{job}: peak memory above that for 1,000", (peak - few[job][1]) / MIB, 16, " MiB")
        fact(f"{job}: first round {first:.1f} s, second round {second:.1f} s; peak {shown([peak / MIB])} MiB")
    _, _, first, second = many["ids"]
    figure("ids: time of the second round over deactivated accounts, of the first", 100 * second / first, 2, " %")


def rounds(microglia, fake, accounts):
    """Two rounds of each job over deactivated accounts: runs, peak memory, and the seconds of both."""
    homeserver = Fake(fake, accounts, world="deactivated")
    config = write_config(f"rounds-{accounts}", homeserver.url, homeserver.token, JOBS, f"max_requests_per_second = {RATE}\n")
    found = {}
    for job in ("ids", "join"):
        runs, peak, first = one_round(microglia, config, job)
        _, again, second = one_round(microglia, config, job)
        found[job] = (runs, max(peak, again), first, second)
    homeserver.stop()
    return found


def one_round(microglia, config, job):
    runs, peak, start = 0, 0, time.monotonic()
    while True:
        log = config.parent / "log"
        run = Program([microglia, "--config", config, "run", job, "--dry-run"], log)
        peak = max(peak, run.peak())
        assert run.process.returncode == 0, log.read_text()
        runs += 1
        listed = subprocess.run([microglia, "--config", config, "runs", job, "--limit", "1", "--json"], stdout=subprocess.PIPE, check=True)
        if json.loads(listed.stdout)[0]["round"]["finished_at"]:
            return runs, peak, time.monotonic() - start
