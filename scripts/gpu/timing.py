"""Times on the GPU: launches captured in a graph, replays between events, the median.

A graph keeps the time that Python takes to launch out of the figure. Where inputs are small, launches go round a number of
them, so that the L2 cache holds none until its turn comes again.
"""

import math
import statistics

REPLAYS = 20
MAX_LAUNCHES = 128
MIN_REPLAY_MS = 1.0


def rounds(torch, bytes_read):
    """How many sets of inputs of this size are together four times the L2 cache."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(MAX_LAUNCHES, math.ceil(4 * l2 / max(bytes_read, 1))))


def median_ms(torch, launches, replays=REPLAYS):
    """Milliseconds of one of the launches (functions of no arguments that only launch), in their order, as one stream."""
    for launch in launches[:2]:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay(times):
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    replay(2)
    # Replays of less than the clock is good for are taken together.
    times = max(1, min(50, math.ceil(MIN_REPLAY_MS / max(replay(1), 1e-3))))
    figures = [replay(times) / times / len(launches) for _ in range(replays)]
    graph.reset()
    return statistics.median(figures)
