"""Recorded SPS(B) profiles as JSON with provenance; `sglang_dspark.cost.load_profile` finds them by name."""
