"""The embedded system behind `tuwen up`: real servers and our own processes, supervised as one family."""
