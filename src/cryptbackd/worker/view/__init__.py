"""The versions as whoever browses sees them: a server with that user's rights.

``sandbox`` starts it, and it ends with the job; ``tree`` finds files and ``operations`` answers
the kernel by them.
"""
