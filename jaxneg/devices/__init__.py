"""Devices: the mesh, tables split over it, several hosts, and memory."""
