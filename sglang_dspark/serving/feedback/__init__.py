"""What a step leaves behind on its way back: publishes, copies, clocks, counters, drift and metrics."""
