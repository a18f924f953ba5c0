"""The system service: sees drives come and go, starts a worker a job, watches it.

One asyncio loop, no threads.  It opens no block device and reads no passphrase; whatever can
hang on a drive happens in a worker.
"""
