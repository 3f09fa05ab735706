"""Where a network ponders: the depth, the gates and the loss of every token, and what they go with."""
