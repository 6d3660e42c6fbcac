"""`max_requests_per_second = "auto"`: how fast it is alone, and what another client notices of it."""

import statistics
import threading
import time

from bench import UNLIMITED, fact, figure, median, report_of, shown, write_config
from on_synapse import OtherClient, Synapse, ids_job

AUTO = 'max_requests_per_second = "auto"\n'


# Accounts, runs of each kind, seconds at rest.
SIZES = (3000, 5, 20)


def main(microglia, fake, small):
    users, repeats, idle_seconds = (100, 1, 2) if small else SIZES
    synapse = Synapse(users, 1, members=10)
    try:
        configs = {
            name: write_config(name, synapse.url, synapse.token, ids_job("nobody"), limits)
            for name, limits in (("auto", AUTO), ("unlimited", UNLIMITED))
        }
        alone(synapse, microglia, configs, repeats)
        beside(synapse, microglia, configs, repeats, idle_seconds)
    finally:
        synapse.stop()


def alone(synapse, microglia, configs, repeats):
    rates = {name: [] for name in configs}
    for number in range(repeats + 1):
        for name, config in configs.items():
            report, took = report_of(microglia, config, "ids", "--dry-run")
            # The first round warms Synapse's caches.
            if number:
                rates[name].append(synapse.users / took)
            if name == "auto":
                fact(f"{report['message']}")
    ratio = median([auto / unlimited for auto, unlimited in zip(rates["auto"], rates["unlimited"])])
    figure("nobody else: rate with \"auto\" against that with \"unlimited\", 4 requests at a time", ratio, 0.85, worst=min)
    fact("; ".join(f"{name}: {shown(found)} accounts a second" for name, found in rates.items()))


def beside(synapse, microglia, configs, repeats, idle_seconds):
    latencies = OtherClient(synapse).latencies
    found = {"idle": [], **{name: [] for name in configs}}
    ratios = {name: ([], []) for name in configs}
    for _ in range(repeats):
        end = time.monotonic() + idle_seconds
        idle = latencies(lambda: time.monotonic() >= end)
        found["idle"] += idle
        for name, config in configs.items():
            sweep = threading.Thread(target=report_of, args=(microglia, config, "ids", "--dry-run"))
            sweep.start()
            swept = latencies(lambda: not sweep.is_alive())
            found[name] += swept
            for ratio, of in zip(ratios[name], (median, percentile_95)):
                ratio.append(of(swept) / of(idle))
    figure("another client beside \"auto\": median latency against that without a sweep", median(ratios["auto"][0]), 1.2)
    figure("the same, 95th percentile", median(ratios["auto"][1]), 1.5)
    beside_unlimited = [median(ratio) for ratio in ratios["unlimited"]]
    fact(f"beside \"unlimited\": {beside_unlimited[0]:.3g} and {beside_unlimited[1]:.3g}")
    for name, times in found.items():
        fact(f"{name}: median {median(times) * 1000:.1f} ms, 95th percentile {percentile_95(times) * 1000:.1f} ms of {len(times)}")


def percentile_95(values):
    return statistics.quantiles(values, n=20)[-1]
