"""What a checkpoint is worth on text it has not seen, and how deep it thinks there."""
