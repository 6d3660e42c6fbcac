"""How many requests the plan of `lock-inactive-accounts` takes."""

import subprocess

from bench import UNLIMITED, Fake, Program, fact, figure, report_of, write_config


def main(microglia, fake, small):
    accounts, unused = (5_000, 50) if small else (100_000, 500)
    homeserver = Unused(fake, accounts, unused)
    job = '[jobs.lock]\nkind = "lock-inactive-accounts"\ninactive_for = "90d"\n'
    config = write_config("inactive", homeserver.url, Fake.token, job, UNLIMITED)
    report, took = report_of(microglia, config, "lock", "--dry-run")
    assert report["planned"] == unused, report
    requests = homeserver.requests()
    homeserver.process.stop()
    figure(f"lock-inactive-accounts, {accounts:,} accounts of which {unused:,} are unused: requests of a plan", requests, 1_200)
    fact(f"the whole command took {took:.1f} s")


class Unused:
    """The fake homeserver with unused accounts, in a process of its own."""

    def __init__(self, fake, accounts, unused):
        command = [fake, "unused", accounts, unused]
        self.process = Program(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.url = self.process.process.stdout.readline().decode().strip()

    def requests(self):
        """How many arrived since the last call."""
        self.process.process.stdin.write(b"\n")
        self.process.process.stdin.flush()
        return int(self.process.process.stdout.readline())
