"""Model hosts: what they are, their connections, and what their bytes mean."""
