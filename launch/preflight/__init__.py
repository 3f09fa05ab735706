"""`adaponder preflight`: is what a training is about to run on sound? One file a check.

A check looks on every rank (`Check.look`), all ranks tell each other what they saw (`meeting`), and `Check.judge` makes
findings of it. Ranks meet in the job's own store, which needs no more than a connection to the first node: a network
on which collectives fail is a finding, too. Where no ranks are started, one process is all there is, and the same
checks say what is wrong with this machine.
"""
