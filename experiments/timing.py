"""How everything here is timed, once: contenders in turn, many rounds, medians with quartiles, weights that no cache holds.

    samplers = {name: clock.sampler(calls) for name, calls in contenders.items()}
    samples = interleave(samplers, rounds=20)
    ratio(samples["linear"], samples["int8"])        how many times as fast as "linear" is "int8", round by round

A contender comes as a list of calls, the same work on different data, as many as it takes to overflow the last cache
(`copies`): in a model each layer's weight comes from memory, and one buffer timed over and over would come from the cache.
A disturbance of the machine affects all contenders of a round alike, so ratios and differences are taken within
rounds, before the median.
"""

import itertools
import math
import os
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

# The profiler otherwise announces itself on standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Call = Callable[[], Any]
Sampler = Callable[[], float]
Name = TypeVar("Name", bound=Hashable)

#: Where the operating system does not say how large the last cache is.
USUAL_CACHE = 64 << 20


class Clock(Protocol):
    """Times calls on one kind of device.

    Attributes:
        cache: bytes of the device's last cache.
    """

    cache: int

    def sampler(self, calls: Sequence[Call], graph: bool = False) -> Sampler:
        """Runs every call once, so that nothing is compiled, packed or allocated later; returns a function that times some of them.

        Args:
            calls: the same work on different data.
            graph: whether to capture the calls into one CUDA graph and time its replay, without the host's launches; a CPU has none.

        Returns:
            A function to call once a round: the seconds of one call, the mean over those that it ran.
        """
        ...


class CpuClock:
    """By the host's clock.

    Attributes:
        cache: bytes of the last cache.
        least: seconds that one sample takes at least, by which the clock's own cost vanishes.
    """

    def __init__(self, least: float = 1e-3, cache: int | None = None) -> None:
        self.cache = cache or _cpu_cache()
        self.least = least

    def sampler(self, calls: Sequence[Call], graph: bool = False) -> Sampler:
        """As in `Clock`; each sample goes on with the next of the calls, as many as take `least`."""
        for call in calls:
            call()
        start = time.perf_counter()
        for call in calls:
            call()
        batch = _times(self.least, (time.perf_counter() - start) / len(calls))
        turn = itertools.cycle(calls)

        def sample() -> float:
            chosen = list(itertools.islice(turn, batch))
            start = time.perf_counter()
            for call in chosen:
                call()
            return (time.perf_counter() - start) / batch

        return sample


class CudaClock:
    """By CUDA events, which the device records.

    Attributes:
        cache: bytes of the second-level cache.
        least: seconds that one sample takes at least, by which the delay of its first launch vanishes.
    """

    def __init__(self, least: float = 5e-3) -> None:
        self.cache = torch.cuda.get_device_properties().L2_cache_size
        self.least = least

    def sampler(self, calls: Sequence[Call], graph: bool = False) -> Sampler:
        """As in `Clock`; each sample runs all calls, as often as takes `least`."""

        def run() -> None:
            for call in calls:
                call()

        # Nothing may run for the first time while it is captured, and what runs before a capture belongs on a stream of its own.
        # The outer context also puts the stream back if the capture fails.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
            torch.cuda.synchronize()
            if graph:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured):
                    run()
        torch.cuda.synchronize()
        launch = captured.replay if graph else run
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def timed(passes: int) -> float:
            begin.record()
            for _ in range(passes):
                launch()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3 / (passes * len(calls))

        timed(1)  # the first replay of a graph also brings it to the device
        passes = _times(self.least, timed(1) * len(calls))
        return lambda: timed(passes)


def _times(least: float, each: float) -> int:
    """How often something that takes `each` seconds has to run to take `least`."""
    return max(1, math.ceil(least / max(each, 1e-9)))


def clock_for(device: str) -> Clock:
    """The clock of "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else CpuClock()


def stopwatch(device: str) -> Callable[[], float]:
    """The host's time in seconds, read once all work on "cpu" or "cuda" is done: for work that the host steers, such as a model."""
    if device == "cpu":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def kernel_of(call: Call, device: str) -> str | None:
    """Which kernel a call launches on "cuda", or which of PyTorch's operations it runs on "cpu": the one that takes longest.

    None where the profiler sees none.
    """
    activity = torch.profiler.ProfilerActivity
    # Without acc_events Torch 2.11 warns that events are cleared between cycles; there is one cycle here.
    with torch.profiler.profile(activities=[activity.CUDA if device == "cuda" else activity.CPU], acc_events=True) as profile:
        call()
        stopwatch(device)()
    events = profile.key_averages()
    longest = max(events, key=lambda e: e.self_device_time_total if device == "cuda" else e.self_cpu_time_total, default=None)
    return longest and longest.key


def _cpu_cache() -> int:
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or USUAL_CACHE
    except (AttributeError, OSError, ValueError):
        return USUAL_CACHE


def copies(cache: int, size: int) -> int:
    """How many buffers of `size` bytes, at least 2, fill a cache of `cache` bytes three times over."""
    return max(2, math.ceil(3 * cache / max(1, size)))


def interleave(samplers: Mapping[Name, Sampler], rounds: int) -> dict[Name, list[float]]:
    """Lets every sampler run once a round, in an order drawn anew each round.

    Returns:
        The samples of each, in seconds, by round.
    """
    draw = random.Random(0)
    samples: dict[Name, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name in draw.sample(list(samplers), len(samplers)):
            samples[name].append(samplers[name]())
    return samples


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, by linear interpolation."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as fast as `base` `other` is: spread of base / other, round by round."""
    return spread([b / o for b, o in zip(base, other, strict=True)])


def difference(whole: Sequence[float], part: Sequence[float]) -> dict[str, float]:
    """Spread of whole - part, round by round."""
    return spread([w - p for w, p in zip(whole, part, strict=True)])
