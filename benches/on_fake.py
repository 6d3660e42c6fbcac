"""The memory that a run over many accounts uses."""

from bench import MIB, UNLIMITED, Fake, Program, fact, figure, median, shown, write_config


def main(microglia, fake, small):
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
