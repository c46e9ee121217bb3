"""Measuring: speed (`bench`), quality (`evaluation`), and the schedule that fits both (`tune`).

`tools` is what they share; drawing needs the extra `lab`. Only the command line imports this,
nothing that computes.
"""
