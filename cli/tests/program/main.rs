//! `selvedge` as people run it, with a node of its own to ask or a machine of its own to change.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod nodes;
mod support;
mod verbs;
