"""The page of scripts/demo.py: its server, and the files that a browser loads."""
