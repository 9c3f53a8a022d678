"""The page that `--report` writes: what it shows (gathered here as plain values), and the file itself."""
