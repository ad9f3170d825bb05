"""What a run needs, before anything is loaded: memory, disk, operations, traffic; and the settings that fit."""
