"""Policies at equal compute: what the learned gates decide, against fixed shares of the tokens (method section 6).

All run the same trained network. A policy says how many tokens go on after each pass; which ones is always told by the
gates: those with the largest values. So what is compared is when to stop, not what the network learned.
"""
