"""PostgreSQL, which holds the truth: the schema, and every transition as one guarded statement.

In come typed requests of `tuwen` and ids; out go frozen rows, and `tuwen.errors` for what PostgreSQL refuses or
cannot do. No module outside this room writes SQL, but for the migrations.
"""

from shared.database.facade import Database
from shared.database.jobs import Dispatch, Finish, GiveBack, JobClaim, QueueState, Submission

__all__ = ["Database", "Dispatch", "Finish", "GiveBack", "JobClaim", "QueueState", "Submission"]
