"""Faults injected into real processes, what is promised of each, and whether it held.

    python tests/faults [--only WORDS] [--out DIR]

A fault is one entry of a list: its name, the moment, what is promised, and a function that injects it, checks what came
of it, and tells how many steps were done again. `fault.py` says what an entry is, `job.py` starts the processes,
`inject.py` runs inside of them.
"""
