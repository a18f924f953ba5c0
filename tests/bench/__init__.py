"""How long a backup takes, and what it asks of the drive, beside others that do such a thing."""
