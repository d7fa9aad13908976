"""HTTP/1.1 server on raw sockets: knows sockets, bytes and threads, and nothing of models."""
