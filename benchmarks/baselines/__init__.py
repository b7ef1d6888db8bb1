"""The contenders of the step benchmark (`step.py`): ours, the floor, and what others would use."""
