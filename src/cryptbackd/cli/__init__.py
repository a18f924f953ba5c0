"""The command line, ``cryptback``: asks the daemon over the system bus, and shows the answer.

It lives as long as one command, and touches no drive itself.
"""
