import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent.parent / folder) for folder in ("records", "simulator")]  # helpers of theirs
