"""From a checkpoint to a folder that anyone loads with transformers, verified where this project does not exist."""
