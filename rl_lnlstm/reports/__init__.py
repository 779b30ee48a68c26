"""Looking into a recurrent policy: what it remembers, and a report of a run as a single HTML file."""
