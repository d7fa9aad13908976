"""What is measured: servers as child processes, the engine without a server."""
