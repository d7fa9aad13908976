"""Clients under which servers are measured: load, streams, probes, crowds."""
