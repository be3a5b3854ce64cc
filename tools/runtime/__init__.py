"""The machine a run is on: device, processes, interruption, random generators."""
