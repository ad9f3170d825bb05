"""Towers for images, sound and video: loaded, trained and stored; who sees whom in rows with images."""
