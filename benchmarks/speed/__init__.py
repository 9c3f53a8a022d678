"""Parts of benchmarks/simulation_speed.py: the loads, child processes, the peer, and another commit."""
