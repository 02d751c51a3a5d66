"""The training loop as one resumable DeepSpeed job.

`job` is the loop and `step` what a stage may change in it; `rows` is what it trains on, and `job_checkpoint` what it saves
and resumes from.
"""
