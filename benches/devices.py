"""Deleting stale devices of accounts of the fake homeserver, which responds after 5 ms."""

import subprocess

from bench import UNLIMITED, Program, fact, figure, median, report_of, shown, write_config

# The default of `max_concurrent_requests`.
CONCURRENCY = 4
JOB = (
    '[jobs.devices]\nkind = "delete-stale-devices"\nunused_for = "180d"\nmax_changes = "unlimited"\n'
    'time_limit = "1d"\n'
)


def main(microglia, fake, small):
    accounts, stale, repeats = (500, 2_500, 1) if small else (10_000, 50_000, 3)
    # Fifty devices are deleted with one request.
    owners = stale // 50
    ours, bare, plans = [], [], []
    for number in range(repeats):
        homeserver = Devices(fake, accounts, owners, 50)
        config = write_config(f"devices-{number}", homeserver.url, homeserver.token, JOB, UNLIMITED)
        report, _ = report_of(microglia, config, "devices", "--dry-run")
        assert report["planned"] == stale, report
        requests, about_accounts, seconds = homeserver.counts()
        plans.append(requests)
        ours.append(about_accounts / seconds)
        command = [fake, "load-devices", homeserver.url, homeserver.token, CONCURRENCY]
        ids = "".join(f"@user{account:06}:fake.test\n" for account in range(accounts))
        subprocess.run([str(part) for part in command], input=ids.encode(), stdout=subprocess.DEVNULL, check=True)
        _, lists, seconds = homeserver.counts()
        assert lists == accounts, lists
        bare.append(lists / seconds)
        homeserver.stop()
    figure(f"delete-stale-devices, {accounts:,} accounts, {stale:,} stale devices: requests of the plan", median(plans), 1.2 * accounts)
    figure("the same: rate of its requests about accounts, relative to a bare loop of lists of devices", median(ours) / median(bare), 0.9, worst=min)
    fact(f"requests per second: {shown(ours)}; the bare loop: {shown(bare)}")
    whole_run(microglia, fake, accounts, stale)


def whole_run(microglia, fake, accounts, stale):
    """With four requests of fifty devices each for an account, and one list before and one after."""
    homeserver = Devices(fake, accounts, stale // 200, 200)
    config = write_config("devices-all", homeserver.url, homeserver.token, JOB, UNLIMITED)
    report, took = report_of(microglia, config, "devices", "--apply")
    assert report["done"] == stale, report
    requests, _, _ = homeserver.counts()
    homeserver.stop()
    figure(f"the same, 200 devices for each of {stale // 200} accounts: requests with those that delete them", requests, 1.2 * accounts)
    fact(f"{took:.0f} s, most of it the pauses between accounts and between requests")


class Devices:
    """The fake homeserver, in a process of its own."""

    token = "fake-token"

    def __init__(self, fake, accounts, owners, each):
        self.process = Program([fake, "devices", accounts, owners, each], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.url = self.line().strip()

    def line(self):
        return self.process.process.stdout.readline().decode()

    def counts(self):
        """Of the requests since the last call: all, those about accounts, and the seconds from the first to the last of these."""
        self.process.process.stdin.write(b"\n")
        self.process.process.stdin.flush()
        requests, about_accounts, seconds = self.line().split()
        return int(requests), int(about_accounts), float(seconds)

    def stop(self):
        self.process.stop()
