"""What a student got from its teacher, from outputs alone: the task's, the kind's, its own."""
