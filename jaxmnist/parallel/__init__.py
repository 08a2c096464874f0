"""Devices, processes and the programs compiled for them."""
