"""What a run is: its folder, manifest, identity, tracker and what it prints."""
