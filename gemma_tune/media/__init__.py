"""Images, sound and video: what their files say of themselves, and how they are opened."""
