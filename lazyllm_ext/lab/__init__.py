"""Measuring: speed (`bench`), quality (`evaluation`), and the schedule that fits both (`tune`).

Only the command line imports this; nothing that computes does.
"""
