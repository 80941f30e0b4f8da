"""Commands that run in processes of their own: started, followed and stopped by files and by the process's number, so
that whoever started them may end and find them again. Trainings and evaluations are such."""
