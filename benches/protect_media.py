"""`protect-media` on the fake homeserver: what the nights after the first one cost."""

from bench import MIB, UNLIMITED, Fake, fact, figure, report_of, write_config

JOB = '[jobs.protect]\nkind = "protect-media"\nmax_changes = "unlimited"\n'


def main(microglia, fake, small):
    rooms, changed = (400, 10) if small else (20_000, 50)
    homeserver = Fake(fake, rooms, "packs", changed)
    config = write_config("protect", homeserver.url, homeserver.token, JOB, UNLIMITED)
    try:
        nights = []
        for _ in range(3):
            report, took = report_of(microglia, config, "protect", "--apply")
            assert report["outcome"] == "succeeded", report
            nights.append((homeserver.requests(), took, report["done"]))
    finally:
        homeserver.stop()
    figure(f"{rooms:,} rooms of which {changed} changed: requests of the second night", nights[1][0], 120)
    for number, (requests, took, done) in enumerate(nights, 1):
        fact(f"night {number}: {requests:,} requests in {took:.1f} s, {done:,} files protected")
    history = config.parent / "state" / "history.db"
    fact(f"history: {history.stat().st_size / MIB:.1f} MiB")
