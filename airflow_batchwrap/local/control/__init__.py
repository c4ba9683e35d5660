"""What makes things happen: nodes come and go, tasks are placed and run, jobs end, a restart recovers."""
