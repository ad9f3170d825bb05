"""What rewards add to training: the tasks, the scoring, the trainers."""
