"""What reaches a terminal: lines, log records and progress bars."""
