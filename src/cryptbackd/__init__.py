"""cryptbackd: plug in a USB drive and it backs itself up.

The folders are the processes: ``daemon`` (the system service), ``worker`` (one child of
the daemon a job), ``cli`` (whoever types ``cryptback``).  What stands beside them in this
folder is what they share, and knows nothing of them.
"""

__version__ = "0.1.0"
