"""The native API: turns HTTP requests into generations, and generations into HTTP responses."""
