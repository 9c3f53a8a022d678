"""What a run is worth: figures, comparisons, reports, timelines, and predictions held against records."""
