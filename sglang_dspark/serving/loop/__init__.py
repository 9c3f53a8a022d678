"""One decode step after the other: SGLang's worker and planner with a policy in charge."""
