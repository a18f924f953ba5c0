"""The jobs, one a file: straight lines down the stack and up again."""
