//! NOTE TO THE SCHED HELPER: the integrator writes `converge` on main right now. Skip it: do place,
//! then steward and autoscale. Delete this file before you commit.
