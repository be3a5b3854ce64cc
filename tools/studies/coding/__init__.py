"""Neural codes: movies, simulated cells, recordings, and networks fitted to spike trains.

Movies are float32 [T, H, W], spikes [R, T, N]: R trials of T frames (one bin each), N cells.
`tools.analysis.spike_trains` has the metrics.
"""
