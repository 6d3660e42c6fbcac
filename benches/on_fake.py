"""What a sweep over many accounts holds in memory."""

from bench import MIB, UNLIMITED, Fake, Program, fact, figure, median, shown, write_config


def main(microglia, fake, small):
    huge_room(microglia, fake, 20_000 if small else 400_000)
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
