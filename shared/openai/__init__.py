"""OpenAI's requests as jobs, and its answers of jobs that are over: for the API, and for the housekeeper's batches.

In come bytes or jobs, out go `JobRequest`s or what OpenAI's clients read; nothing here knows HTTP.
"""
