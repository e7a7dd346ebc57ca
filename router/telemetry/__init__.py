"""What is recorded of every request and token: layouts, the writer, readers."""
