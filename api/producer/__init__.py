"""The producer: requests come in and are checked, become committed jobs, and are waited for or watched."""
