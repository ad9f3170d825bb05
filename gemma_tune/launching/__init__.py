"""Starting the processes of a run: on this machine under torchrun's agent, or as a job of Slurm or SkyPilot."""
