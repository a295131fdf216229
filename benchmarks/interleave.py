"""Timing rivals in turn within one run, so that a noisy machine is equally unfair to all."""

import statistics
import time


def interleaved(candidates, rounds, pause=0.0, calls=1):
    """Median seconds per call of each candidate over ``rounds`` turns.

    With a pause, a turn waits, calls once untimed and then ``calls`` times timed: OpenBLAS's and
    OpenMP's workers spin for a while after a call and would take a core from the next candidate,
    and after a pause they have to be woken up again.
    """
    times = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            if pause:
                time.sleep(pause)
                run()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def record(benchmark, seconds, own, **facts):
    """Store the medians, and every rival's time over our own, beside the benchmark's own rounds."""
    benchmark.extra_info["median_ms"] = {name: round(1e3 * value, 4) for name, value in seconds.items()}
    benchmark.extra_info["over_own"] = {name: round(value / seconds[own], 3) for name, value in seconds.items()}
    benchmark.extra_info.update(facts)
