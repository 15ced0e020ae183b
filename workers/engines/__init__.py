"""Engines: warm models behind one small interface (`tuwen.engine`)."""
