"""What a job may name, and nothing else: a hospital's allow-list is the one line `fedscan.federation.job.`."""
