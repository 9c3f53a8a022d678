"""Where drafted blocks come from: drawn from statistics or recorded, by drafters and counted random streams."""
