"""Faults at seeded random moments in real sweeps, and what is left of the numbers afterwards.

    make chaos            python -m tests.chaos --seed 0 --minutes 60 --json FILE

A scene starts `targetsweep run`, breaks things while it runs, and then gives the same command again
until it ends well. Then everything must be as if nothing had happened (`verdict`). Faults come from
outside (signals, damaged bytes, servers and disks) or, for those that only a process can do to
itself, from `inject/`, which Python loads into the processes under test.
"""
