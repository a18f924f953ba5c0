"""The quick run: only what has changed at the source is looked at on the drive.

Where the ledger proves that the drive holds what the computer remembers (see
:mod:`.proof`), a listing of the source is compared with the manifest of the last version
(:mod:`.difference`), rsync's own filters decide what of the rest is excluded
(:mod:`.excluded`), and rsync is handed what is left by name (:mod:`.transfer`).  Nothing of this
outlives the run.
"""
