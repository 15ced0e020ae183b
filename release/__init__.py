"""What a release is made with; run by the targets of the Makefile that docs/releasing.md explains."""
