"""``cryptback-agent``: answers for a login session when the daemon wants a passphrase.

The agent itself never has a passphrase: children look it up and ask for it, write it into the
daemon's pipe, and exit.
"""
