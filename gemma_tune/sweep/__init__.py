"""The jobs of a sweep (`-m`) side by side: what differs, what each has measured, and which one is best."""
