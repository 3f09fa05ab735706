"""What a training would take before it is started: parameters, memory, time, disk and cost. No GPU is touched and no
weight is made."""
