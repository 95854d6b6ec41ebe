"""What this project costs beyond training: ``python -m tests.bench``, or ``make bench``."""
