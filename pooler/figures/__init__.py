"""What is counted and timed, and how it is shown: metrics, the log's statistics and slow lines."""
