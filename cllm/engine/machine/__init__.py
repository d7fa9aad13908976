"""This machine and process: processors, memory pages, OpenMP, files of the user, the preflight."""
