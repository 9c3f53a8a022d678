"""The simulator held against what others measured: a file a source, the page that they make, the check that CI runs."""
