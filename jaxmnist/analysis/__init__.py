"""Analysis of runs: evaluation, statistics, results, report and plots."""
