"""What the runs show: evaluation, statistics, results, their report and plots."""
