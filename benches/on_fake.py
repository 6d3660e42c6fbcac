"""The memory that a run over many accounts uses."""

import time

from bench import MIB, UNLIMITED, Fake, Program, fact, figure, median, shown, write_config
from files import Files


def main(microglia, fake, small):
    huge_room(microglia, fake, 20_000 if small else 400_000)
    many_files(microglia, *((100, 100) if small else (10_000, 1_000)))
    many, repeats = (5_000, 1) if small else (100_000, 3)
    jobs = "".join(
        f'[jobs.{name}]\nkind = "remove-external-ids"\nproviders = ["{provider}"]\naccounts = "all"\n'
        'max_changes = "unlimited"\n'
        for name, provider in (("none", "nobody"), ("tenth", "oidc-google"))
    )
    for job, what in (("none", "no id matches"), ("tenth", "10 % match")):
        peaks = {1_000: [], many: []}
        for _ in range(repeats):
            for accounts, found in peaks.items():
                homeserver = Fake(fake, accounts)
                config = write_config("memory", homeserver.url, homeserver.token, jobs, UNLIMITED)
                run = Program([microglia, "--config", config, "run", job, "--dry-run"])
                found.append(run.peak() / MIB)
                assert run.process.returncode == 0, run.process.returncode
                homeserver.stop()
        more = median(peaks[many]) - median(peaks[1_000])
        figure(f"peak memory over {many:,} accounts above that over 1,000, {what}", more, 10, " MiB")
        fact("; ".join(f"{accounts:,}: {shown(found)} MiB" for accounts, found in peaks.items()))


def huge_room(microglia, fake, members):
    """A room of so many members, and a thousand accounts to join to it."""
    homeserver = Fake(fake, members, world="members")
    job = '[jobs.join]\nkind = "join-rooms"\nrooms = ["#lobby:fake.test"]\nmax_changes = "unlimited"\n'
    config = write_config("members", homeserver.url, homeserver.token, job, UNLIMITED)
    run = Program([microglia, "--config", config, "run", "join", "--dry-run"])
    peak = run.peak() / MIB
    assert run.process.returncode == 0, run.process.returncode
    homeserver.stop()
    figure(f"join-rooms, a room of {members:,} members: peak memory", peak, 100, " MiB")


def many_files(microglia, owners, each):
    """The plan of a media purge: what it holds of each file."""
    homeserver = Files(owners, each)
    job = '[jobs.media]\nkind = "purge-local-media"\nolder_than = "180d"\nmax_changes = "unlimited"\ntime_limit = "1d"\n'
    config = write_config("files", homeserver.url, homeserver.token, job, UNLIMITED)
    start = time.monotonic()
    run = Program([microglia, "--config", config, "run", "media", "--dry-run"], config.parent / "log")
    peak = run.peak() / MIB
    seconds = time.monotonic() - start
    assert run.process.returncode == 0, (config.parent / "log").read_text()
    homeserver.stop()
    files = owners * each
    figure(f"purge-local-media, {files:,} files of {owners:,} accounts: peak memory", peak, 200, " MiB", note=f"{seconds:.0f} s")
