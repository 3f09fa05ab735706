"""Reports: what was found of a checkpoint, or of all of a run, as one HTML page and the same as Markdown."""
