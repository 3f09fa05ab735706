"""The paper's comparisons in small: a family of networks trained alike, judged alike, and told in one report.

    study.py, members.py   what is trained: members, by what they differ from the recipe that all share
    training.py            trains them, each once, several at a time
    judging.py             has their checkpoints judged by the pipeline's own suites
    results.py             reads what was found
    claims.py              what the paper finds, beside what came out
    figures.py, report.py  pictures and one page

Imports go upwards in this list. `benchmarks/paper_small.py` is the command.
"""
