"""Engines: warm models behind one small interface (`workers.engines.base`)."""
