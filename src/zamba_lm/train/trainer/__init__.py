"""What every run shares: checkpoints that survive anything, resuming, schedules, a guard, progress, a plan of the memory."""
