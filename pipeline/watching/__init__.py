"""`adaponder watch`: every checkpoint of a run judged by itself, by the recipe's schedule.

    evaluation/jobs/recipe-0123456789ab.yaml           what the judging processes read
    evaluation/jobs/step-00001000/job.json             suites that are owed, failed tries, the job that was submitted
    evaluation/jobs/step-00001000/claim-0001.json      who has it in hand; the highest number counts

Any number of watchers, on any hosts that share the folder, may watch one run; each may be killed at any moment.
"""
