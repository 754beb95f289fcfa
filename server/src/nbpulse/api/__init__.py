"""The HTTP and WebSocket API, and the pages of the board. The only place that knows the web framework."""
