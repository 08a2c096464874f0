"""The page of scripts/demo.py: its server, and what a browser loads."""
