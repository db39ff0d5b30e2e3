"""What a process owes its pod: its environment and device, signals, an exit code, and last words."""
